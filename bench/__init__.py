# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: what a container costs a step, beside ch-run's in the same run."""
