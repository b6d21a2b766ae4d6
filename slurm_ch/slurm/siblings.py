# SPDX-License-Identifier: Apache-2.0
"""The other tasks of this step on this node."""

from __future__ import annotations

import os


def alive() -> int | None:
    """Return how many of this step's tasks live here, or None when that can't be known.

    A task killed before it registers leaves no trace of its own. All tasks
    of a node are children of one slurmstepd, forked before any runs.
    Read as bytes: in the container, Python can't load a codec of the caller's locale any more.
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
