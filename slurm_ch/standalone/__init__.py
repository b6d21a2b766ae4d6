# SPDX-License-Identifier: Apache-2.0
"""`slurm-ch run`: a container without the plugin."""
