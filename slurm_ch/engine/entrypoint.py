# SPDX-License-Identifier: Apache-2.0
"""Run the image's entrypoint once per node, before the tasks; they get the variables and directory that it sets.

The entrypoint gets a command to execute, as usual. Here that is a shell command which writes its environment and
directory to descriptor 3. Loaded only if the entrypoint is requested.
"""

from __future__ import annotations

import _signal
import os

from .. import agreement, linux, log
from ..errors import ChError, describe
from . import ch_join, task_plan
from .action import Action, Build
from .environment import is_task_variable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NoReturn

SHOW = ("/bin/sh", "-c", "cat /proc/self/environ >&3 && pwd >&3")
_SHOWN_MAX = 4 << 20
# Variables that a shell sets by itself.
_SHELLS = ("_", "PWD", "OLDPWD", "SHLVL")


class RunEntrypoint(Action):
    """Run the image's entrypoint, and record its changes to the environment and directory for each task.

    `argv` is what is run; it has to end as SHOW does.
    """

    __slots__ = ("argv", "ch_join_fd", "directory", "env", "label", "speaks")

    def __init__(
        self, label: str, env: Mapping[str, str], *, speaks: bool, directory: bool, argv: Sequence[str] = ("-", *SHOW)
    ) -> None:
        self.label = label
        self.env = {name: value for name, value in env.items() if name != agreement.JOIN_VARIABLE}
        self.argv = argv
        self.speaks = speaks  # whether the user sees its output
        self.directory = directory  # whether tasks start in the directory that it changes to
        self.ch_join_fd = -1

    def describe(self) -> str:
        return "run the image's entrypoint"

    def apply(self, build: Build) -> None:
        plan = task_plan.encode(build.records)
        before, _ = self._run(plan, SHOW, False)
        after, directory = self._run(plan, self.argv, self.speaks)
        os.close(self.ch_join_fd)
        names = [name for name in {**before, **after} if name not in _SHELLS and not is_task_variable(name)]
        for name in names:
            if name not in after:
                build.records.append((agreement.PLAN_UNSET, name))
            elif before.get(name) != after[name]:
                build.records.append((agreement.PLAN_SET, f"{name}={after[name]}"))
        if self.directory and directory.startswith("/"):
            build.records = [one for one in build.records if one[0] != agreement.PLAN_DIRECTORY]
            build.records.append((agreement.PLAN_DIRECTORY, directory))

    def _run(self, plan: bytes, argv: Sequence[str], speaks: bool) -> tuple[dict[str, str], str]:
        shown = os.memfd_create("slurm_ch-entrypoint", os.MFD_CLOEXEC)
        output = os.memfd_create("slurm_ch-entrypoint-log", os.MFD_CLOEXEC)
        # A process that ignores SIGCHLD can't wait for its children's status.
        before = _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        try:
            pid = os.fork()
            if pid == 0:
                self._become(plan, argv, shown, log.target()[0] if speaks else output)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if status != 0:
                words = os.pread(output, 1000, 0).decode("utf-8", "replace").strip().replace("\n", "; ")
                raise ChError(f"{self.label} ended with status {status}: {words}")
            *entries, directory = os.fsdecode(os.pread(shown, _SHOWN_MAX, 0)).split("\0")
        finally:
            _signal.signal(_signal.SIGCHLD, before)
            os.close(shown)
            os.close(output)
        return dict(entry.split("=", 1) for entry in entries if "=" in entry), directory.removesuffix("\n")

    def _become(self, plan: bytes, argv: Sequence[str], shown: int, output: int) -> NoReturn:
        try:
            linux.prctl_no_new_privs()
            linux.prctl_parent_death_signal(_signal.SIGKILL)
            null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            # Duplicates, with numbers above 3, which are not overwritten below.
            output, shown, program = (os.dup(fd) for fd in (output, shown, self.ch_join_fd))
            os.dup2(null, 0)
            os.dup2(output, 1)
            os.dup2(output, 2)
            linux.close_range(3, linux.CLOSE_RANGE_CLOEXEC)
            # A number that the duplicates don't have. Nothing else in this process needs it: it is about to exec.
            os.dup2(program, 200, inheritable=False)
            os.dup2(shown, 3)
            ch_join.execute(200, plan, argv, self.env)
        except (ChError, OSError) as error:
            os.write(2, describe(error).encode())
        finally:
            os._exit(agreement.EXIT_CANNOT_EXECUTE)
