# SPDX-License-Identifier: Apache-2.0
"""What `import slurm_ch` gives: containers from Python, and the environment of a job that runs in one."""
