# SPDX-License-Identifier: Apache-2.0
"""slurm_ch: Slurm job steps in unprivileged containers."""

__version__ = "0.2.0"
