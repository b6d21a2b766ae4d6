# SPDX-License-Identifier: Apache-2.0
"""Count the tasks of this step on this node."""

from __future__ import annotations

import os


def alive() -> int | None:
    """Return how many tasks of this step are alive on this node, or None if this can't be determined.

    All tasks of a node are children of one slurmstepd, which forks all of them before any
    runs. So even tasks that are killed before they register are noticed.
    Files are read as bytes: in the container, Python can't load the codec of the caller's locale.
    """
    parent = os.getppid()
    try:
        with open(f"/proc/{parent}/comm", "rb") as file:
            if not file.read().startswith(b"slurmstepd"):
                return None
        count = 0
        for thread in os.listdir(f"/proc/{parent}/task"):
            with open(f"/proc/{parent}/task/{thread}/children", "rb") as file:
                count += sum(_is_alive(int(pid)) for pid in file.read().split())
    except OSError:
        return None
    return count


def _is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in b"ZX"
    except OSError:
        return False
