# SPDX-License-Identifier: Apache-2.0
"""The end of every way in without the plugin: this process becomes `ch-join`."""

from __future__ import annotations

import errno
import os
import signal
import stat

from .. import paths
from ..errors import ChError
from ..plugin import tickets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NoReturn


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
            if fd > 2 and not stat.S_ISFIFO(mode) and not stat.S_ISSOCK(mode):
                os.set_inheritable(fd, False)
        except OSError as error:
            if error.errno != errno.EBADF:  # the listing's own
                raise


def open_ch_join() -> int:
    """Return a descriptor of ch-join, which can't be found any more once the root has changed."""
    try:
        return os.open(paths.CH_JOIN, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise ChError(f"can't find ch-join: {paths.CH_JOIN}") from error


def become(ch_join: int, plan: bytes, argv: Sequence[str], env: Mapping[str, str], cwd: str) -> NoReturn:
    """Become ch-join, which carries out `plan` and executes `argv`, in `cwd` if it can."""
    plan_fd = tickets.plan_file(plan)
    os.set_inheritable(plan_fd, True)
    # Python ignores these two; the command shall find them as they were.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    command = ["ch-join", f"--plan={plan_fd}", "--", *argv]
    environment = {name: value for name, value in env.items() if name != "SLURM_CH_JOIN"}
    environment["SLURM_CH_CWD"] = cwd
    try:
        os.execve(f"/proc/self/fd/{ch_join}", command, environment)
    except OSError as error:
        raise ChError("can't execute ch-join") from error
