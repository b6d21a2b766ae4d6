# SPDX-License-Identifier: Apache-2.0
"""A real Slurm on this machine for as long as a `with` lasts."""
