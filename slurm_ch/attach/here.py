# SPDX-License-Identifier: Apache-2.0
"""The parts of `slurm-ch enter`, `ps` and `pack` that run on a job's node."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from .. import agreement, log
from ..engine import ch_join, environment, namespaces, standby_server, task_plan
from ..errors import ChError, describe
from ..images import container_tree, directory
from ..images.flat import Flat
from . import kept_containers, running

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import NoReturn

# The beginning of each line of `containers`.
MARK = "slurm_ch container "

_SHELLS = ("/bin/bash", "/bin/sh")
# Variables that belong to a task's own MPI process.
_TASKS_OWN = ("PMI_", "PMIX_")


def containers(job: int) -> Iterator[str]:
    """Yield a line of JSON, after MARK, for each of a job's containers on this node."""
    node = os.environ.get("SLURMD_NODENAME", "")
    left = kept_containers.containers_on_node(str(job), node)
    for one in running.find(job, None, node):
        record = {"step": one.step, "node": node, "image": one.image, "tasks": one.tasks, "seconds": one.seconds}
        mark = next((mark for mark in left if one.has_overlay(mark)), None)
        name = {} if mark is None else {"name": left.pop(mark).name}
        yield MARK + json.dumps({**record, **name})
    for rest in left.values():
        yield MARK + json.dumps(kept_containers.ps_row(rest, node))


def _find_one(job: int, label: str, step: str | None) -> running.Running:
    """Return the container of a job or step on this node; ChError if there is none, or there are several."""
    node = os.environ.get("SLURMD_NODENAME", "")
    what = f"{label}.{step}" if step else f"job {label}"
    found = running.find(job, step, node)
    if not found:
        raise ChError(f"{what}: no container of yours runs here; see slurm-ch ps")
    if len({container.step for container in found}) > 1:
        listed = ", ".join(f"{label}.{container.step} ({container.image})" for container in found)
        raise ChError(f"{what}: several containers run here; choose one: {listed}")
    return found[0]


def enter(job: int, label: str, step: str | None, argv: Sequence[str]) -> NoReturn:
    """Replace this process by `argv`, or a shell, in the container of a job or step on this node; ChError."""
    container = _find_one(job, label, step)
    user_fd, mount_fd = container.open_namespaces()
    further = container.open_further()
    directory = container.open_directory()
    _start_standby_server(user_fd)
    ch_join.drop_descriptors()
    program = ch_join.open_ch_join()
    env, plan = _environment(container)
    namespaces.enter(user_fd, mount_fd, f"pid {container.pid}", further)
    ch_join.become(program, task_plan.encode(plan), argv or [_shell()], env, _change_directory(directory))


def _start_standby_server(user_fd: int) -> None:
    """Start a standby image server in this step, so that its command can go on when the container's step ends."""
    try:
        if standby_server.is_needed():
            standby_server.start(user_fd)
    except ChError as error:
        log.info(describe(error))


def _environment(container: running.Running) -> tuple[dict[str, str], list[task_plan.Record]]:
    """Return the environment of the container's task; if that isn't readable, our own and the basic rules for it."""
    if agreement.RUNNING_VARIABLE in container.environment:
        env, plan = container.environment, []
    else:
        env, plan = (
            ch_join.given_environment(),
            [*environment.first_records("/"), (agreement.PLAN_SET, f"{agreement.RUNNING_VARIABLE}={container.image}")],
        )
    env = {name: value for name, value in env.items() if not name.startswith(_TASKS_OWN)}
    for name in ("TERM", "COLORTERM"):
        if name in os.environ:
            env[name] = os.environ[name]
    return env, plan


def _shell() -> str:
    return next((path for path in _SHELLS if os.access(path, os.X_OK)), _SHELLS[-1])


def _change_directory(directory: int | None) -> str:
    """Change to the task's directory, and return its path in the container; "/" if that isn't possible."""
    try:
        if directory is not None:
            os.fchdir(directory)
            return os.getcwd()
    except OSError:
        pass
    return "/"


def pack(job: int, label: str, step: str | None) -> None:
    """Write a tar archive of a container on this node to standard output, after MARK; COUNT to standard error."""
    container = _find_one(job, label, step)
    user_fd, mount_fd = container.open_namespaces()
    namespaces.enter(user_fd, mount_fd, f"pid {container.pid}")
    flat = Flat(directory.read("/", directory.mount_points()))
    os.write(1, container_tree.MARK)
    flat.write(1)
    os.write(2, f"{container_tree.COUNT}{flat.inodes}\n".encode())
