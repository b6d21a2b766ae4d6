# SPDX-License-Identifier: Apache-2.0
"""The plot of the report's main figures."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

from . import suites
from .stats import Samples

_COLOURS = {
    suites.OURS_DIR: "#1f77b4",
    suites.OURS_SQFS: "#17becf",
    suites.JOIN_DIR: "#2ca02c",
    suites.JOIN_SQFS: "#98df8a",
    suites.PEER_DIR: "#d62728",
    suites.PEER_SQFS: "#ff7f0e",
}


def plot(samples: Samples, path: Path) -> None:
    """Draw added time and CPU by tasks, and added time by nodes, into a PNG file."""
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.5))
    for axis, suite, what, prefix, title in (
        (axes[0], "steps", "wall", "N=", "Added to a bare srun, one node"),
        (axes[1], "steps", "cpu", "N=", "CPU added, everything on the node"),
        (axes[2], "nodes", "wall", "nodes=", f"Added, {suites.TASKS_PER_NODE} tasks on each virtual node"),
    ):
        cases = samples.cases(suite)
        for offset, (variant, colour) in enumerate(_COLOURS.items()):
            found = [samples.added(suite, case, variant, suites.BARE, what) for case in cases]
            places = [index + (offset - 1.5) * 0.2 for index in range(len(cases))]
            heights = [s.median * 1000 if s else 0 for s in found]
            errors = [
                [max(0.0, s.median - s.low) * 1000 if s else 0 for s in found],
                [max(0.0, s.high - s.median) * 1000 if s else 0 for s in found],
            ]
            axis.bar(places, heights, 0.2, yerr=errors, color=colour, label=variant, capsize=2)
        axis.set_xticks(range(len(cases)), [case.removeprefix(prefix) for case in cases])
        axis.set_xlabel("tasks" if prefix == "N=" else "virtual nodes")
        axis.set_ylabel("ms")
        axis.set_title(title)
        axis.grid(axis="y", alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
