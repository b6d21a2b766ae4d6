"""`slurm-ch doctor`: what on this node, or in the installation, would stop a step."""
