# SPDX-License-Identifier: Apache-2.0
"""Questions to Slurm: its commands, its jobs and steps, its plugstack.conf."""
