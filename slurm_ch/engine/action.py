# SPDX-License-Identifier: Apache-2.0
"""The actions of a plan, and the state that they share.

A plan is a tuple of actions. It is complete before any of them is applied, so that
it can be shown (`slurm-ch explain`) and tested without a namespace.
"""

from __future__ import annotations

from .. import log
from ..errors import ChError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Build:
    """The state of a container under construction, passed from action to action.

    The new root is built in a staging tmpfs that is mounted over "/". Absolute paths
    still lead to the host; only the working directory is in the staging tmpfs. So no
    directory of the host is hidden, and no mount point has to exist there.
    """

    __slots__ = (
        "covers", "home", "image_fd", "in_memory", "mounts", "overmounts", "proc_fd", "read_only",
        "records", "relay_fd", "root", "root_fd", "server_pid", "server_stderr", "uncovered_fd",
    )  # fmt: skip

    def __init__(self) -> None:
        self.image_fd = -1  # the image, as a detached mount
        self.root = ""  # the new root, relative to the staging directory
        self.root_fd = -1
        self.mounts: set[int] = set()  # ids of mounts that are the container's own: files may be created in them
        self.in_memory = False  # whether all changes to the tree are kept in memory, and lost at the end
        self.home = "/"  # HOME of the command
        self.read_only = False  # whether the new root is
        self.overmounts = 0  # counts overlays, to name their layers
        self.covers: list[int] = []  # mounts laid over a directory of the image to create a file there
        self.uncovered_fd = -1  # the new root without these covers
        self.proc_fd = -1  # the host's /proc/self
        self.records: list[tuple[str, str]] = []  # the task plan's, for ch-join
        self.server_pid = -1  # the image server's parent, to be reaped
        self.server_stderr = -1
        self.relay_fd = -1  # the listening socket of the relay for Slurm's commands


class MoreActions:
    """Actions that an option adds to a plan: before the binds, after them, and in the commands' namespaces."""

    __slots__ = ("before_binds", "in_tree", "inside")

    def __init__(self) -> None:
        self.before_binds: list[Action] = []
        self.in_tree: list[Action] = []
        self.inside: list[Action] = []


class Action:
    """One step of a plan."""

    __slots__ = ()

    def describe(self) -> str:
        """Return one line that tells a user what `apply` does."""
        raise NotImplementedError

    def apply(self, build: Build) -> None:
        """Carry out the action; ChError or OSError on failure."""
        raise NotImplementedError


HOOK_ALLOW = "allow"
HOOK_SKIP = "skip"
HOOK_FAIL = "fail"


class Hook:
    """A named function, called with the container and the hook's own data."""

    __slots__ = ("data", "function", "name")

    def __init__(self, name: str, function: Callable[[Any, object], None], data: object) -> None:
        self.name = name
        self.function = function
        self.data = data


class Hooks:
    """An ordered list of hooks that runs once."""

    __slots__ = ("_hooks", "_ran", "when")

    def __init__(self, when: str) -> None:
        self.when = when
        self._hooks: list[Hook] = []
        self._ran = False

    def add(
        self, name: str, function: Callable[[Any, object], None], data: object = None, duplicate: str = HOOK_FAIL
    ) -> None:
        """Append a hook; ChError on a duplicate name unless `duplicate` allows or skips it."""
        if duplicate != HOOK_ALLOW and any(hook.name == name for hook in self._hooks):
            if duplicate == HOOK_SKIP:
                return
            raise ChError(f"duplicate hook: {name}")
        self._hooks.append(Hook(name, function, data))

    def run(self, container: Any) -> None:
        """Call the hooks in order; ChError if they ran before."""
        if self._ran:
            raise ChError(f"hooks already ran: {self.when}")
        self._ran = True
        for hook in self._hooks:
            log.debug(f"hook: {self.when}: {hook.name}")
            hook.function(container, hook.data)


class RunHooks(Action):
    """Run one of the container's lists of hooks."""

    __slots__ = ("container", "hooks")

    def __init__(self, container: Any, hooks: Hooks) -> None:
        self.container = container
        self.hooks = hooks

    def describe(self) -> str:
        return f"run {self.hooks.when} hooks"

    def apply(self, build: Build) -> None:
        del build
        self.hooks.run(self.container)
