# SPDX-License-Identifier: Apache-2.0
"""What a plan consists of: actions, and the state that they share.

A plan is a tuple of actions, decided before anything is done. It can be shown
(`slurm-ch explain`) and tested without a namespace.
"""

from __future__ import annotations

from .. import log
from ..errors import ChError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Build:
    """A container under construction: what one action leaves for the next.

    The new root lives in a staging tmpfs that lies over the host's root
    directory, where nothing but the working directory sees it: no directory
    of the host is hidden, and none has to exist for it.
    """

    __slots__ = (
        "ch_join_fd", "covers", "home", "image_fd", "in_memory", "mounts", "overmounts", "proc_fd", "read_only",
        "records", "relay_fd", "root", "root_fd", "server_pid", "server_stderr", "uncovered_fd",
    )  # fmt: skip

    def __init__(self) -> None:
        self.image_fd = -1  # the image as a detached mount
        self.ch_join_fd = -1  # to execute a program of the image with
        self.root = ""  # the new root, relative to the staging directory
        self.root_fd = -1
        self.mounts: set[int] = set()  # ids of mounts in which creation is harmless
        self.in_memory = False  # what is written to the tree is lost
        self.home = "/"  # the command's
        self.read_only = False  # the new root
        self.overmounts = 0
        self.covers: list[int] = []  # the overmounts that were made to create something
        self.uncovered_fd = -1  # the new root without overmounts
        self.proc_fd = -1  # the host's /proc/self
        self.records: list[tuple[str, str]] = []  # for the plan that ch-join gets
        self.server_pid = -1  # to be waited for
        self.server_stderr = -1
        self.relay_fd = -1  # where Slurm's commands are called from inside


class MoreActions:
    """Actions that an option adds to a plan, by where in it they belong."""

    __slots__ = ("before_binds", "in_tree", "inside")

    def __init__(self) -> None:
        self.before_binds: list[Action] = []
        self.in_tree: list[Action] = []
        self.inside: list[Action] = []


class Action:
    """One thing to do."""

    __slots__ = ()

    def describe(self) -> str:
        """Return one line for people."""
        raise NotImplementedError

    def apply(self, build: Build) -> None:
        """Do it; ChError if it can't be done."""
        raise NotImplementedError


HOOK_ALLOW = "allow"
HOOK_SKIP = "skip"
HOOK_FAIL = "fail"


class Hook:
    """A named function to be called with the container and its own data."""

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
        """Call the hooks in order; ChError when they ran before."""
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
