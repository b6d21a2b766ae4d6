# SPDX-License-Identifier: Apache-2.0
"""Containers that run on this node, found by the processes that Slurm says are in a step.

Nothing is remembered anywhere: `scontrol listpids` knows a step's processes,
and the kernel knows their namespaces. A process is held by its directory in
/proc, opened once: what is opened through it is that process's or fails, never
that of another with the same number.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from ..agreement import RUNNING_VARIABLE
from ..engine import named_containers, namespaces
from ..errors import ChError
from ..slurm import commands

if TYPE_CHECKING:
    from collections.abc import Mapping

_OWN_STEP = ("SLURM_JOB_ID", "SLURM_STEP_ID")
_FUSE_ROOT = re.compile(r" / / \S+ .*- fuse\.slurm_ch (\S+) ", re.ASCII)


class Listed:
    """One process that Slurm counts to a step; `local_id` for a task itself."""

    __slots__ = ("local_id", "pid", "step")

    def __init__(self, pid: int, step: str, local_id: int | None) -> None:
        self.pid = pid
        self.step = step
        self.local_id = local_id


class Running:
    """A container of a step: held by its first task, or else by its first process."""

    __slots__ = ("environment", "image", "pid", "proc_fd", "seconds", "step", "tasks")

    def __init__(self, listed: Listed, proc_fd: int, environment: dict[str, str], image: str) -> None:
        self.pid = listed.pid
        self.step = listed.step
        self.proc_fd = proc_fd
        self.environment = environment
        self.image = image
        self.tasks = 0
        self.seconds = _age(proc_fd)

    def open_namespaces(self) -> tuple[int, int]:
        """Return descriptors of its user and mount namespaces; ChError if it has ended."""
        return namespaces.open_at(self.proc_fd, self.pid)

    def open_further(self) -> Mapping[str, int]:
        """Return descriptors of its further namespaces that aren't ours."""
        return named_containers.open_further(self.proc_fd, self.pid)

    def has_overlay(self, mark: str) -> bool:
        """Whether it is the container whose overlay is called so."""
        return named_containers.is_in(mark, _read(self.proc_fd, "mountinfo"))

    def open_directory(self) -> int | None:
        """Return a descriptor of its working directory, or None if that can't be opened."""
        try:
            return os.open("cwd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.proc_fd)
        except OSError:
            return None


def parse_listpids(text: str) -> list[Listed]:
    """Return the processes of `scontrol listpids`: tasks first, in their order."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) == 5 and words[0].isdigit():
            found.append(Listed(int(words[0]), words[2], int(words[3]) if words[3].isdigit() else None))
    return sorted(found, key=lambda one: (one.step, one.local_id is None, one.local_id or 0, one.pid))


def list_processes(job: int, step: str | None, node: str) -> list[Listed]:
    """Return the processes of a job's steps, or of one step, on this node, without this very step's."""
    # The whole job: Slurm takes a step's number here, but not `batch`.
    done = commands.run(["scontrol", "listpids", str(job), node])
    listed = parse_listpids(done.stdout)
    # With nothing to list it fails too.
    if not listed and done.returncode != 0 and "no steps" not in done.stderr:
        raise ChError(f"scontrol listpids {job} {node} failed: {commands.last_line(done)}")
    own_job, own_step = (os.environ.get(name) for name in _OWN_STEP)
    return [one for one in listed if (str(job), one.step) != (own_job, own_step) and step in (None, one.step)]


def find(job: int, step: str | None, node: str) -> list[Running]:
    """Return the caller's containers in a job's steps, or in one step, on this node."""
    listed = list_processes(job, step, node)
    found = _group(listed)
    # A process may have ended and its number been taken between the list and our look.
    # One that we hold, that is still listed, and that still lives, is the one listed.
    still = {(one.pid, one.step) for one in list_processes(job, step, node)} if found else set()
    alive = []
    for container in found:
        if (container.pid, container.step) in still and _read(container.proc_fd, "stat"):
            alive.append(container)
        else:
            os.close(container.proc_fd)
    return alive


def _group(listed: list[Listed]) -> list[Running]:
    """Hold one process of each container, and count the container's tasks."""
    host = os.stat("/proc/self/ns/user").st_ino
    found: dict[tuple[str, int], Running] = {}
    for one in listed:
        try:
            proc_fd = os.open(f"/proc/{one.pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue  # it has ended
        kept = False
        try:
            if os.stat("ns/user", dir_fd=proc_fd).st_ino == host:
                continue
            key = (one.step, os.stat("ns/mnt", dir_fd=proc_fd).st_ino)
            if key not in found:
                environment = _environment(proc_fd)
                image = _image(proc_fd, environment)
                if image is None:
                    continue
                found[key] = Running(one, proc_fd, environment, image)
                kept = True
            found[key].tasks += one.local_id is not None
        except OSError:
            continue  # not ours to look at, or it has ended
        finally:
            if not kept:
                os.close(proc_fd)
    return list(found.values())


def _read(proc_fd: int, name: str) -> bytes:
    try:
        with open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc_fd), "rb") as file:
            return file.read()
    except OSError:
        return b""


def _environment(proc_fd: int) -> dict[str, str]:
    entries = os.fsdecode(_read(proc_fd, "environ")).split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry[1:])


def _image(proc_fd: int, environment: dict[str, str]) -> str | None:
    """Return the image, or None for somebody else's namespaces.

    A command may have been started without our variable (`env -i`): then the
    mounts tell.
    """
    if RUNNING_VARIABLE in environment:
        return environment[RUNNING_VARIABLE]
    mounts = os.fsdecode(_read(proc_fd, "mountinfo"))
    served = _FUSE_ROOT.search(mounts)
    if served:
        return served[1]
    return "?" if " slurm_ch" in mounts else None


def _age(proc_fd: int) -> int:
    """Return how long ago the process started, in whole seconds."""
    fields = _read(proc_fd, "stat").rpartition(b")")[2].split()
    with open("/proc/uptime") as file:
        uptime = float(file.read().split()[0])
    # The 22nd field, in clock ticks; the two before ")" are gone.
    return max(0, int(uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK"))) if len(fields) > 19 else 0
