# SPDX-License-Identifier: Apache-2.0
"""The launcher for `slurm-ch run`, which gets its options from a command line, not from the plugin.

The static program starts it, alone or as one of several peers. Loaded only for that.
"""

from __future__ import annotations

from .. import log
from ..agreement import CH_RUN
from ..engine import namespaces, task_plan
from ..engine.action import Build
from ..engine.caller import Caller
from ..engine.container import Container, containerize, plan_bytes
from ..engine.environment import Environment, apply_inside, load_readers
from ..request import parsers
from ..request.words import Words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..request.spec import Spec
    from . import tickets


def wanted(given: Sequence[str], name: str, located: str | None) -> Spec:
    """Return the request in the arguments `given` of the command `name`, without the command to be run.

    `located` is the file of the image if that is a reference. Configures the log.
    """
    words = Words(given)
    spec = parsers.make(words.words[0] if words.words else None, words.settings, "IMAGE")
    spec.like_ch_run = name == CH_RUN
    spec.located = located
    if located is None:
        parsers.check_nothing_to_pull(spec)
    log.configure(level=spec.verbosity, color=log.on_terminal() if spec.color is None else spec.color)
    return spec


def launch(spec: Spec, caller: Caller, task_socket: tickets.TaskSocket, ready: Sequence[int]) -> None:
    """Make the container, or enter an existing one, and hand out the ticket.

    `ready` is empty, or holds descriptors of the user and mount namespaces of a container that another
    peer has made. Then, and with --join-pid, only this peer's environment rules are evaluated.
    """
    if ready:
        user_fd, mount_fd = ready
        build = _enter(spec, caller, user_fd, mount_fd)
    elif spec.join_pid is not None:
        environment = Environment(spec, caller)
        load_readers()
        user_fd, mount_fd = namespaces.enter_pid(spec.join_pid)
        build = apply_inside(environment)
    else:
        build = containerize(Container(spec, caller))
        user_fd, mount_fd = namespaces.open_own()
    task_socket.issue(user_fd, mount_fd, task_plan.plan_file(plan_bytes(build)))


def _enter(spec: Spec, caller: Caller, user_fd: int, mount_fd: int) -> Build:
    container = Container(spec, caller, joining=True)
    environment = Environment(spec, caller, container.injection, joining=True)
    load_readers()
    namespaces.enter(user_fd, mount_fd, "the other peers")
    return apply_inside(environment)
