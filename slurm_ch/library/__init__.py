# SPDX-License-Identifier: Apache-2.0
"""The functions that `import slurm_ch` provides: containers in Python, and variables for a job that runs in one."""
