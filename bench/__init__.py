# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: what a container costs a step, compared with ch-run in the same run."""
