# SPDX-License-Identifier: Apache-2.0
"""Who makes an image: a lock file, and whether the process that it names is still alive."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

from .. import log
from ..errors import ChError

if TYPE_CHECKING:
    pass


# A lock that nobody has touched for so long is nobody's.
STALE_SECONDS = 60.0
BEAT_SECONDS = 10.0


class CacheError(ChError):
    """The cache can't be used."""


class Lock:
    """A file that says who makes an image."""

    def __init__(self, path: str, fd: int) -> None:
        self._path = path
        self._fd = fd
        self._beaten = float("-inf")
        self.beat("")

    @classmethod
    def create(cls, path: str) -> Lock | None:
        """Return the lock at `path`, or None if somebody has it."""
        try:
            # Atomic on NFS too, since version 3.
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            return None
        except OSError as error:
            raise CacheError(f"can't write to the cache: {path}") from error
        return cls(path, fd)

    def beat(self, progress: str) -> None:
        """Show that we are alive, and how far."""
        now = time.monotonic()
        if now - self._beaten < BEAT_SECONDS:
            return
        self._beaten = now
        data = json.dumps({**identity(), "progress": progress}).encode()
        try:
            os.pwrite(self._fd, data, 0)
            os.ftruncate(self._fd, len(data))
        except OSError as error:
            log.debug(f"{self._path}: {error.strerror}")

    def release(self) -> None:
        """Remove the lock, unless another has taken it over."""
        try:
            if os.fstat(self._fd).st_ino == os.stat(self._path).st_ino:
                os.unlink(self._path)
        except OSError as error:
            log.debug(f"{self._path}: {error.strerror}")
        os.close(self._fd)


def _host() -> str:
    return os.uname().nodename


def _start(pid: int) -> str:
    """Return when a process began, by the kernel's clock ticks; empty if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in (b"Z", b"X") else fields[19].decode()


def _namespace() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def me() -> str:
    """Return what no other process of any host is called."""
    return f"{_host()}.{os.getpid()}.{_start(os.getpid())}"


def identity() -> dict[str, Any]:
    """Return what tells others whether this process is alive."""
    return {"host": _host(), "pid": os.getpid(), "start": _start(os.getpid()), "where": _namespace()}


def is_dead(record: dict[str, Any]) -> bool:
    """Whether the process that a record names is gone for certain: only of this host, and of our own view of it."""
    pid, start, where = record.get("pid"), record.get("start"), record.get("where")
    if not isinstance(pid, int) or not where or record.get("host") != _host():
        return False
    if str(where).split(" ")[0] != _namespace().split(" ")[0]:
        return True  # the host has been started again since
    return where == _namespace() and _start(pid) != start


def is_alive(record: dict[str, Any]) -> bool:
    """Whether the process that a record names is one that we see."""
    pid, start = record.get("pid"), record.get("start")
    if not isinstance(pid, int) or record.get("host") != _host() or record.get("where") != _namespace():
        return False
    return bool(start) and _start(pid) == start
