# SPDX-License-Identifier: Apache-2.0
"""Programs that we start: they end with us, whatever ends us."""

from __future__ import annotations

import os
import select
import signal
import subprocess

from .. import linux
from ..errors import ChError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import IO, Any

# So much of what a program has to say is kept.
_WORDS = 16384
# How often somebody looks how far they are.
POLL_SECONDS = 0.2


def start(
    argv: Sequence[str],
    env: Mapping[str, str],
    *,
    stdin: int | IO[Any] = subprocess.DEVNULL,
    stdout: int | IO[Any] = subprocess.DEVNULL,
    stderr: int | IO[Any] = subprocess.DEVNULL,
    niceness: int = 0,
) -> subprocess.Popen[bytes]:
    """Start `argv` in a process group of its own, so that Ctrl-C is ours to deal with; ChError if that can't be.

    Only from the main thread: the kernel takes a thread that ends for the parent.
    """
    parent = os.getpid()

    def in_child() -> None:
        os.setpgid(0, 0)
        linux.prctl_parent_death_signal(signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        if niceness:
            os.nice(niceness)

    try:
        return subprocess.Popen(
            list(argv),
            env=dict(env),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            preexec_fn=in_child,  # noqa: PLW1509  there are no threads
        )
    except OSError as error:
        raise ChError(f"can't run {argv[0]}") from error


def ended(child: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Return a child's status as soon as it has ended, or None after so many seconds.

    Popen.wait with a time-out only looks from time to time, which doubles what a short look-up takes.
    """
    status = child.poll()
    if status is not None:
        return status
    try:
        watched = os.pidfd_open(child.pid)
    except OSError:  # a kernel before 5.3
        try:
            return child.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
    try:
        poll = select.poll()
        poll.register(watched, select.POLLIN)
        poll.poll(seconds * 1000)
    finally:
        os.close(watched)
    return child.poll()


def wait(child: subprocess.Popen[bytes], tick: Callable[[], None]) -> int:
    """Return a child's status when it has ended; `tick` is called now and then."""
    while True:
        status = ended(child, POLL_SECONDS)
        if status is not None:
            return status
        tick()


def killed(name: str, status: int) -> str:
    """Return what to say of a program whose negative status names a signal."""
    return (
        f"{name} was killed by signal {-status}: if memory ran out, ask for more, "
        "or pull the image before the job (`slurm-ch pull`)"
    )


def stop(child: subprocess.Popen[bytes]) -> None:
    """End a child and all that it started, unless it has ended."""
    if child.poll() is None:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            child.kill()
        child.wait()


def words_file() -> IO[bytes]:
    """Return a file in memory for what a program says: a pipe that nobody reads would stop it."""
    return os.fdopen(os.memfd_create("words"), "w+b")


def words(file: IO[bytes]) -> str:
    """Return the last of what a program said."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _WORDS))
    return file.read().decode("utf-8", "replace").strip()
