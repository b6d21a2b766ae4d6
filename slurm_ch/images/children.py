# SPDX-License-Identifier: Apache-2.0
"""Start programs that are killed when this process ends, for whatever reason."""

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

# The last bytes of a program's messages that are used.
_MESSAGES_BYTES = 16384
# The interval at which a program's progress is checked.
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
    """Start `argv` in its own process group, so that Ctrl-C reaches only this process; ChError on failure.

    The kernel kills the program when this process ends. Call it only from the main thread: the
    kernel does so when the calling thread ends.
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
    """Return a child's status as soon as it has ended, or None after `seconds`.

    Popen.wait with a timeout polls, which doubles the time of a short look-up.
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
    """Wait for a child and return its status; call `tick` every POLL_SECONDS."""
    while True:
        status = ended(child, POLL_SECONDS)
        if status is not None:
            return status
        tick()


def killed(name: str, status: int) -> str:
    """Return the message for a program that was killed by a signal; `status` is negative."""
    return (
        f"{name} was killed by signal {-status}: if memory ran out, ask for more, "
        "or pull the image before the job (`slurm-ch pull`)"
    )


def stop(child: subprocess.Popen[bytes]) -> None:
    """Kill a child's process group and wait for the child, unless it has ended."""
    if child.poll() is None:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            child.kill()
        child.wait()


def memory_file() -> IO[bytes]:
    """Return a memory file for a program's output: a pipe that nobody reads would block it."""
    return os.fdopen(os.memfd_create("words"), "w+b")


def last_words(file: IO[bytes]) -> str:
    """Return the end of a program's output."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _MESSAGES_BYTES))
    return file.read().decode("utf-8", "replace").strip()
