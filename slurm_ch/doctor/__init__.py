# SPDX-License-Identifier: Apache-2.0
"""`slurm-ch doctor`: find what on this node, or in the installation, would stop a step."""
