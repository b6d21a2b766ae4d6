# SPDX-License-Identifier: Apache-2.0
"""The `slurm-ch` command: a person's way in."""
