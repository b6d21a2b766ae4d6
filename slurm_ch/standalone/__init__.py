"""`slurm-ch run`: a container without the plugin."""
