# SPDX-License-Identifier: Apache-2.0
"""The `slurm-ch` command and its subcommands."""
