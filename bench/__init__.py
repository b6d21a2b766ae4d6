"""Benchmarks: what a container costs a step, beside ch-run's in the same run."""
