# SPDX-License-Identifier: Apache-2.0
"""Ask Slurm: run its commands, list its jobs and steps, read its plugstack.conf."""
