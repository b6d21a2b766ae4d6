# SPDX-License-Identifier: Apache-2.0
"""`slurm-ch run`: containers without the plugin, and named joins."""
