# SPDX-License-Identifier: Apache-2.0
"""Find the containers that run on this node, by the processes of the job's steps.

There is no record of containers: `scontrol listpids` lists a step's processes, and the
kernel knows their namespaces. The directory of a process in /proc is opened only once.
What is opened through it belongs to that process, never to another one with the same pid.
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


class StepProcess:
    """A process of a step, as listed by Slurm; `local_id` is the task's local id, or None if it isn't a task itself."""

    __slots__ = ("local_id", "pid", "step")

    def __init__(self, pid: int, step: str, local_id: int | None) -> None:
        self.pid = pid
        self.step = step
        self.local_id = local_id


class Running:
    """A running container of a step. It is represented by its first task, or else by its first process.

    `tasks`: the number of its tasks. `seconds`: the age of that process.
    """

    __slots__ = ("environment", "image", "pid", "proc_fd", "seconds", "step", "tasks")

    def __init__(self, listed: StepProcess, proc_fd: int, environment: dict[str, str], image: str) -> None:
        self.pid = listed.pid
        self.step = listed.step
        self.proc_fd = proc_fd
        self.environment = environment
        self.image = image
        self.tasks = 0
        self.seconds = _age(proc_fd)

    def open_namespaces(self) -> tuple[int, int]:
        """Return descriptors of the user and mount namespaces; ChError if the process has ended."""
        return namespaces.open_at(self.proc_fd, self.pid)

    def open_further(self) -> Mapping[str, int]:
        """Return descriptors of its net, ipc and uts namespaces, as far as they differ from this process's."""
        return named_containers.open_further(self.proc_fd, self.pid)

    def has_overlay(self, mark: str) -> bool:
        """Whether the overlay with this source name is mounted in the container."""
        return named_containers.is_in(mark, _read(self.proc_fd, "mountinfo"))

    def open_directory(self) -> int | None:
        """Return a descriptor of the process's working directory, or None if it can't be opened."""
        try:
            return os.open("cwd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.proc_fd)
        except OSError:
            return None


def parse_listpids(text: str) -> list[StepProcess]:
    """Parse the output of `scontrol listpids`; in each step, the tasks come first, in order."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) == 5 and words[0].isdigit():
            found.append(StepProcess(int(words[0]), words[2], int(words[3]) if words[3].isdigit() else None))
    return sorted(found, key=lambda one: (one.step, one.local_id is None, one.local_id or 0, one.pid))


def list_processes(job: int, step: str | None, node: str) -> list[StepProcess]:
    """Return the processes of a job's steps, or of one step, on this node; this process's own step is left out."""
    # Of the whole job: scontrol accepts a step's number, but not `batch`.
    done = commands.run(["scontrol", "listpids", str(job), node])
    listed = parse_listpids(done.stdout)
    # It also fails if there is nothing to list.
    if not listed and done.returncode != 0 and "no steps" not in done.stderr:
        raise ChError(f"scontrol listpids {job} {node} failed: {commands.last_line(done)}")
    own_job, own_step = (os.environ.get(name) for name in _OWN_STEP)
    return [one for one in listed if (str(job), one.step) != (own_job, own_step) and step in (None, one.step)]


def find(job: int, step: str | None, node: str) -> list[Running]:
    """Return the caller's containers in a job's steps, or in one step, on this node."""
    listed = list_processes(job, step, node)
    found = _group(listed)
    # Between the listing and the opening of /proc/PID, a process may have ended, and its pid been
    # reused. If the pid is listed again afterwards, and the opened process lives, it is the listed one.
    still = {(one.pid, one.step) for one in list_processes(job, step, node)} if found else set()
    alive = []
    for container in found:
        if (container.pid, container.step) in still and _read(container.proc_fd, "stat"):
            alive.append(container)
        else:
            os.close(container.proc_fd)
    return alive


def _group(listed: list[StepProcess]) -> list[Running]:
    """Open one process of each container, and count the container's tasks."""
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
            continue  # no permission, or it has ended
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
    """Return the container's image, or None if the namespaces aren't of slurm_ch.

    If a command was started without CH_RUNNING (`env -i`), the mounts show the image.
    """
    if RUNNING_VARIABLE in environment:
        return environment[RUNNING_VARIABLE]
    mounts = os.fsdecode(_read(proc_fd, "mountinfo"))
    served = _FUSE_ROOT.search(mounts)
    if served:
        return served[1]
    return "?" if " slurm_ch" in mounts else None


def _age(proc_fd: int) -> int:
    """Return the process's age in whole seconds."""
    fields = _read(proc_fd, "stat").rpartition(b")")[2].split()
    with open("/proc/uptime") as file:
        uptime = float(file.read().split()[0])
    # The start time is field 22 of stat, in clock ticks; the first two fields were cut off with ")".
    return max(0, int(uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK"))) if len(fields) > 19 else 0
