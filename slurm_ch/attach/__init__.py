# SPDX-License-Identifier: Apache-2.0
"""`slurm-ch enter`, `slurm-ch ps` and `slurm-ch rm`: enter, list and remove containers of jobs."""
