# SPDX-License-Identifier: Apache-2.0
"""A temporary Slurm cluster on this machine."""
