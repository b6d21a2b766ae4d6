# SPDX-License-Identifier: Apache-2.0
"""Execute `ch-join`, as the process that has made or joined a container does where there is no plugin."""

from __future__ import annotations

import _signal
import errno
import os
import stat

from .. import agreement, paths
from ..errors import ChError
from . import task_plan
from .action import Action

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NoReturn, Protocol

    from .action import Build

    class RunsProgram(Protocol):
        """An action that executes a program of the image by ch-join, and closes the descriptor after that."""

        ch_join_fd: int


_MFD_EXEC = 0x10  # since Linux 6.3
_CHUNK_BYTES = 1 << 24


def given_environment() -> dict[str, str]:
    """Return the environment that this process was started with, for its command.

    In the C locale, Python adds LC_CTYPE to its environment (PEP 538).
    """
    environment = dict(os.environ)
    with open("/proc/self/environ", "rb") as file:
        if not any(entry.startswith(b"LC_CTYPE=") for entry in file.read().split(b"\0")):
            environment.pop("LC_CTYPE", None)
    return environment


def drop_descriptors() -> None:
    """Make inherited descriptors close-on-exec, except the standard streams, pipes and sockets.

    An open directory or device of the host would lead out of the container. Pipes and
    sockets don't, and shells, make and MPI use them to talk to what they start.
    """
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            mode = os.fstat(fd).st_mode
        except OSError as error:
            if error.errno == errno.EBADF:  # the descriptor of the listing itself
                continue
            mode = 0  # a file of an image whose server answers only to its own container
        if fd > 2 and not stat.S_ISFIFO(mode) and not stat.S_ISSOCK(mode):
            os.set_inheritable(fd, False)


class OpenChJoin(Action):
    """Open ch-join, which later executes a program of the image, while its path still leads to the host."""

    __slots__ = ("runs", "what")

    def __init__(self, runs: RunsProgram, what: str) -> None:
        self.runs = runs
        self.what = what

    def describe(self) -> str:
        return f"open ch-join, to run {self.what} with"

    def apply(self, build: Build) -> None:
        del build
        self.runs.ch_join_fd = open_ch_join()


def open_ch_join() -> int:
    """Return a descriptor of ch-join, which the container executes: its path means something else there.

    Processes in the container can reach a running program's file through /proc/PID/exe, with the user's
    rights on the host. If the user could change ch-join, the descriptor is of a sealed copy in memory.
    """
    try:
        fd = os.open(paths.CH_JOIN, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ChError(f"can't find ch-join: {paths.CH_JOIN}") from error
    if not _may_write(fd):
        return fd
    try:
        return _sealed_copy(fd)
    except OSError as error:
        raise ChError("can't copy ch-join into memory to execute it (is vm.memfd_noexec 2?)") from error
    finally:
        os.close(fd)


def _may_write(fd: int) -> bool:
    """Whether this process's user can write to the file, or could change its mode to allow it."""
    if os.fstat(fd).st_uid == os.geteuid():
        return True
    return os.access(f"/proc/self/fd/{fd}", os.W_OK, effective_ids=True)


def _sealed_copy(fd: int) -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        copy = os.memfd_create("ch-join", flags | _MFD_EXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        copy = os.memfd_create("ch-join", flags)
    while os.sendfile(copy, fd, None, _CHUNK_BYTES):
        pass
    task_plan.seal(copy)
    return copy


def restore_signals() -> None:
    """Restore the default action of the signals that Python ignores, for the command."""
    _signal.signal(_signal.SIGPIPE, _signal.SIG_DFL)
    _signal.signal(_signal.SIGXFSZ, _signal.SIG_DFL)


def execute(ch_join: int, plan: bytes, argv: Sequence[str], env: Mapping[str, str]) -> NoReturn:
    """Replace this process by ch-join, which carries out `plan` and executes `argv`.

    OSError or ChError on failure. Python's settings of signals are undone.
    """
    # Before the signals are restored: a file size limit (ulimit -f) applies to memory files too, and should be an
    # error, not SIGXFSZ.
    plan_fd = task_plan.plan_file(plan)
    os.set_inheritable(plan_fd, True)
    restore_signals()
    # By descriptor: the container's /proc can't be trusted.
    os.execve(ch_join, ["ch-join", f"{agreement.PLAN_OPTION}{plan_fd}", "--", *argv], env)
    raise AssertionError


def become_static_command(argv: list[str]) -> NoReturn:
    """Replace this process by the static `slurm-ch run`, with checked arguments; ChError on failure."""
    # With the signals and the environment that Python was started with.
    restore_signals()
    try:
        os.execve(paths.CH_JOIN, argv, given_environment())
    except OSError as error:
        raise ChError(f"can't execute {paths.CH_JOIN}") from error
    raise AssertionError


def become(ch_join: int, plan: bytes, argv: Sequence[str], env: Mapping[str, str], cwd: str | None = None) -> NoReturn:
    """Replace this process by ch-join, which carries out `plan` and executes `argv`, in `cwd` if that is given."""
    environment = {name: value for name, value in env.items() if name != agreement.JOIN_VARIABLE}
    environment.pop(agreement.CWD_VARIABLE, None)
    if cwd is not None:
        environment[agreement.CWD_VARIABLE] = cwd
    try:
        execute(ch_join, plan, argv, environment)
    except OSError as error:
        raise ChError("can't execute ch-join") from error
