# SPDX-License-Identifier: Apache-2.0
"""`slurm-ch enter` and `slurm-ch ps`: into, and among, the containers that run."""
