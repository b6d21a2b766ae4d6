"""Slurm, asked: its commands, its jobs and steps, its plugstack.conf."""
