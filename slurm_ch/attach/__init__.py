# SPDX-License-Identifier: Apache-2.0
"""`slurm-ch enter` and `slurm-ch ps`: entering and listing the containers that run."""
