# SPDX-License-Identifier: Apache-2.0
"""Make or join a container without the plugin, for this process, alone or with its peers.

At the end, this process executes `ch-join`, which carries out the task plan and runs the command.
"""

from __future__ import annotations

import os
import sys

from .. import agreement, log
from ..engine import ch_join, namespaces
from ..engine.action import Build
from ..engine.caller import Caller
from ..engine.container import Container, containerize, plan_bytes
from ..engine.environment import Environment, apply_inside, load_readers
from ..errors import ChError
from ..request import step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import NoReturn

    from ..request.spec import Spec
    from ..request.words import Words


def configure_log(spec: Spec, env: Mapping[str, str]) -> None:
    """Set the log's level, color and node from the options and the environment."""
    color = os.isatty(2) and not env.get("NO_COLOR") if spec.color is None else spec.color
    log.configure(level=spec.verbosity, node=env.get("SLURMD_NODENAME", ""), color=color)


# Whether the kernel's policy refuses the sockets by which the static programs of a join meet.
_sockets_refused = False


def sockets_refused() -> None:
    """Make the peers of a join meet by POSIX names, not by a socket, in this process."""
    global _sockets_refused
    _sockets_refused = True


def become_static(name: str, spec: Spec, words: Words) -> None:
    """Replace this process by the static program, which meets the join's other peers; return if that isn't possible.

    It isn't possible if sockets are refused, or if an option names a file that only this process can open, like a
    shell's pipe.
    """
    image, command = words.image_and_command()
    _tag_and_count(spec, os.environ)
    values = [image or "", *(setting.value for setting in words.settings)]
    if _sockets_refused or any(part in value for value in values for part in agreement.OWN_FILES):
        return
    given = [name, sys.executable, spec.located or ""]
    checked = [agreement.CHECKED, *given, *words.in_full(), "--", image or "", *command]
    ch_join.become_static_command(checked)


def _tag_and_count(spec: Spec, env: Mapping[str, str]) -> tuple[str, int]:
    tag = spec.join_tag or step.tag(env, ppid=_starter_pid(env))
    count = spec.join_count or step.local_task_count(env)
    step.check_join(tag, count)
    return tag, count


def _starter_pid(env: Mapping[str, str]) -> int:
    """Return this process's parent, or for MPICH the process that started all ranks on this node."""
    pid = os.getppid()
    while step.HYDRA_COUNT in env and pid > 1:
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                name, _, fields = file.read().rpartition(b")")
        except OSError:
            break
        if name.partition(b"(")[2] == agreement.HYDRA_PROXY.encode():
            return pid
        pid = int(fields.split()[1])
    return os.getppid()


def no_hooks(container: Container) -> None:
    """Add no hooks."""


def run(
    spec: Spec,
    argv: Sequence[str],
    env: Mapping[str, str],
    add_hooks: Callable[[Container], None] = no_hooks,
) -> NoReturn:
    """Run `argv` in the container that `spec` describes, in place of this process; ChError on failure.

    `add_hooks` is called with the container, in the process that makes it and in every peer that
    joins it; in the latter, only the hooks for all run. The log is configured.
    """
    configure_log(spec, env)
    ch_join.drop_descriptors()
    caller = Caller(env)
    program = ch_join.open_ch_join()
    if spec.join_pid is not None:
        build = _enter(spec, caller, spec.join_pid)
    elif spec.join:
        build = _join(spec, caller, add_hooks)
    else:
        build = _make(spec, caller, add_hooks)
    ch_join.become(program, plan_bytes(build), argv, env)


def _make(spec: Spec, caller: Caller, add_hooks: Callable[[Container], None]) -> Build:
    container = Container(spec, caller)
    add_hooks(container)
    return containerize(container)


def _enter(spec: Spec, caller: Caller, pid: int) -> Build:
    environment = Environment(spec, caller)
    load_readers()
    namespaces.enter_pid(pid)
    return apply_inside(environment)


def _join(spec: Spec, caller: Caller, add_hooks: Callable[[Container], None]) -> Build:
    try:
        from . import peers
    except ModuleNotFoundError as error:
        raise ChError(f"--join needs the Python module {error.name}: python3 -m pip install {error.name}") from None
    env = caller.environment
    tag, count = _tag_and_count(spec, env)
    peer = peers.Peer(tag, count, timeout=spec.join_timeout, name=step.task_name(env))
    if peer.arrive():
        try:
            build = _make(spec, caller, add_hooks)
        except ChError as error:
            peer.fail(error.code)
            raise
        peer.publish()
    else:
        try:
            container = Container(spec, caller, joining=True)
            environment = Environment(spec, caller, container.injection, joining=True)
        except ChError:
            # The winner has the same error, and reports it for all peers.
            peer.wait_for_winner()
            raise
        add_hooks(container)
        load_readers()
        user_fd, mount_fd = peer.wait_for_winner()
        namespaces.enter(user_fd, mount_fd, "the join's winner")
        build = apply_inside(environment)
        container.hooks_all.run(container)
    peer.done()
    return build
