"""The `slurm-ch` command: a person's way in."""
