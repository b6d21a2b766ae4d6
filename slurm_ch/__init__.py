"""slurm_ch: Slurm job steps in unprivileged containers."""

__version__ = "0.1.0"
