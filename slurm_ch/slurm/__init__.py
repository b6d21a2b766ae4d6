# SPDX-License-Identifier: Apache-2.0
"""Slurm, asked: its commands, its jobs and steps, its plugstack.conf."""
