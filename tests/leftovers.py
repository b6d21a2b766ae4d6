# SPDX-License-Identifier: Apache-2.0
"""Finds what a test has left: a snapshot of the machine, and the difference to it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from slurm_ch.sandbox import supervisor

# How long something that is on its way out may take.
PATIENCE_SECONDS = 10.0
# How the processes that keep a join's meeting place are called.
_KEEPS = "slurm_ch "


def parents() -> dict[int, int]:
    """Return every process's parent, zombies left out."""
    return supervisor.parents(zombies=False)


def descendants(ancestor: int) -> dict[int, str]:
    """Return the command lines of all living processes below `ancestor`, by pid."""
    found = {}
    for pid in supervisor.descendants(ancestor, zombies=False):
        try:
            found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        except OSError:
            continue
    return found


def wait_until_gone(line: str) -> None:
    """Wait until no process has this command line; raise AssertionError if that takes too long."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while line in descendants(1).values():
        assert time.monotonic() < deadline, f"{line} is still there"
        os.sched_yield()


def holders() -> dict[str, int]:
    """Return the holders and guards of joins, by name."""
    names = {name(pid): pid for pid in descendants(1)}
    return {word.removeprefix(_KEEPS): pid for word, pid in names.items() if word.startswith(_KEEPS)}


def name(pid: int) -> str:
    """Return a process's name, or "" if it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def in_shm() -> list[str]:
    """Return what joins have left in memory that is shared by name."""
    return [name for name in os.listdir("/dev/shm") if "slurm_ch" in name]


def ours(ancestor: int) -> dict[int, str]:
    """Return the processes below `ancestor` that only a running container has, by pid."""
    words = ("squashfuse_ll", "launch.py", "ch-join", "ch-relay", "slurmstepd")
    return {
        pid: line
        for pid, line in descendants(ancestor).items()
        if any(word in line for word in words) or name(pid).startswith(_KEEPS)
    }


def files() -> set[str]:
    """Return the files at places where a container could leave some."""
    return {
        str(path)
        for directory in ("/dev/shm", "/tmp", "/var/tmp")
        for path in Path(directory).glob("*")
        if "slurm_ch" in path.name or "ch-run" in path.name
    }


def mounts() -> set[str]:
    """Return the mounts that this process sees and that slurm_ch has made."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return {line for line in lines if "slurm_ch" in line}


class Snapshot:
    """What exists before a test, including what others have left."""

    def __init__(self, ancestor: int) -> None:
        self.ancestor = ancestor
        self.files = files()
        self.processes = set(ours(ancestor))

    def left(self) -> list[str]:
        """Return what is new since then and still there."""
        processes = [line for pid, line in ours(self.ancestor).items() if pid not in self.processes]
        return [*processes, *sorted(files() - self.files), *sorted(mounts())]

    def wait_until_clean(self) -> None:
        """Wait until nothing is left; raise AssertionError with what is left if that takes too long."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while left := self.left():
            assert time.monotonic() < deadline, f"left behind: {left}"
            # A killed process's end can't be waited for by who isn't its parent.
            os.sched_yield()
