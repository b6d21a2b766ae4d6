# SPDX-License-Identifier: Apache-2.0
"""Without the plugin, the process that has made or joined a container becomes `ch-join`."""

from __future__ import annotations

import _signal
import errno
import os
import stat

from .. import agreement, paths
from ..errors import ChError
from . import task_plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NoReturn

_MFD_EXEC = 0x10  # from Linux 6.3 on
_AT_ONCE = 1 << 24


def given_environment() -> dict[str, str]:
    """Return the environment that this process was started with, for the command to have.

    Python adds an LC_CTYPE to it where the locale is C (PEP 538).
    """
    environment = dict(os.environ)
    with open("/proc/self/environ", "rb") as file:
        if not any(entry.startswith(b"LC_CTYPE=") for entry in file.read().split(b"\0")):
            environment.pop("LC_CTYPE", None)
    return environment


def drop_descriptors() -> None:
    """Have what the caller has open closed when we become the command; streams, pipes and sockets stay.

    A directory or a device of the host's leads out of the container. Pipes and
    sockets don't, and are how shells, make and MPI talk to what they start.
    """
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            mode = os.fstat(fd).st_mode
        except OSError as error:
            if error.errno == errno.EBADF:  # the listing's own
                continue
            mode = 0  # a file of an image that is served to those in its container only
        if fd > 2 and not stat.S_ISFIFO(mode) and not stat.S_ISSOCK(mode):
            os.set_inheritable(fd, False)


def open_ch_join() -> int:
    """Return a descriptor of ch-join, to be executed in the container, where its path leads elsewhere.

    Processes of the container reach the file of a running program through /proc/PID/exe, with the rights
    that the user has on the host. Where these suffice to change ch-join, the descriptor is of a sealed copy.
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
    """Whether this process's user can write the file, or give themselves the right to."""
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
    while os.sendfile(copy, fd, None, _AT_ONCE):
        pass
    task_plan.seal(copy)
    return copy


def restore_signals() -> None:
    """Undo what Python does to signals; the command shall find them as they were."""
    _signal.signal(_signal.SIGPIPE, _signal.SIG_DFL)
    _signal.signal(_signal.SIGXFSZ, _signal.SIG_DFL)


def execute(ch_join: int, plan: bytes, argv: Sequence[str], env: Mapping[str, str]) -> NoReturn:
    """Become ch-join, which carries out `plan` and executes `argv`; OSError or ChError if that can't be."""
    # A limit on files (ulimit -f) holds for those in memory too, and shall be an error.
    plan_fd = task_plan.plan_file(plan)
    os.set_inheritable(plan_fd, True)
    restore_signals()
    # By descriptor: the /proc of the container is not to be trusted.
    os.execve(ch_join, ["ch-join", f"{agreement.PLAN_OPTION}{plan_fd}", "--", *argv], env)
    raise AssertionError


def become_front(argv: list[str]) -> NoReturn:
    """Become the static command, for words that are known to be right; ChError if that can't be."""
    # As Python was given them: it ignores two signals, and may add a variable.
    restore_signals()
    try:
        os.execve(paths.CH_JOIN, argv, given_environment())
    except OSError as error:
        raise ChError(f"can't execute {paths.CH_JOIN}") from error
    raise AssertionError


def become(ch_join: int, plan: bytes, argv: Sequence[str], env: Mapping[str, str], cwd: str | None = None) -> NoReturn:
    """Become ch-join, which carries out `plan` and executes `argv`, in `cwd` if one is named."""
    environment = {name: value for name, value in env.items() if name != agreement.JOIN_VARIABLE}
    environment.pop(agreement.CWD_VARIABLE, None)
    if cwd is not None:
        environment[agreement.CWD_VARIABLE] = cwd
    try:
        execute(ch_join, plan, argv, environment)
    except OSError as error:
        raise ChError("can't execute ch-join") from error
