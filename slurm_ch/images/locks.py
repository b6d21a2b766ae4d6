# SPDX-License-Identifier: Apache-2.0
"""Lock files for the cache. A lock names the process that makes an image, and whether it is alive can be checked.

Locks only save work: if two processes have the same lock, both make the image, and nothing else goes wrong.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import contextmanager

from .. import log
from ..errors import ChError
from .records import read_record, remove

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, TypeVar

    _Found = TypeVar("_Found")

# A lock that hasn't been updated for this time may be taken over.
STALE_SECONDS = 60.0
_BEAT_SECONDS = 10.0
_POLL_SECONDS = 0.5
_QUICK_SECONDS = 0.02


class CacheError(ChError):
    """The cache can't be used."""


class Lock:
    """A lock file that this process holds."""

    def __init__(self, path: str, fd: int) -> None:
        self._path = path
        self._fd = fd
        self._beaten = float("-inf")
        self.beat("")

    @classmethod
    def create(cls, path: str) -> Lock | None:
        """Create the lock file at `path`; return None if it exists. CacheError if it can't be written."""
        try:
            # O_EXCL is atomic, also on NFS since version 3.
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            return None
        except OSError as error:
            raise CacheError(f"can't write to the cache: {path}") from error
        return cls(path, fd)

    def beat(self, progress: str) -> None:
        """Update the lock with `progress`, at most every 10 s, to show that this process is alive."""
        now = time.monotonic()
        if now - self._beaten < _BEAT_SECONDS:
            return
        self._beaten = now
        data = json.dumps({**identity(), "progress": progress}).encode()
        try:
            os.pwrite(self._fd, data, 0)
            os.ftruncate(self._fd, len(data))
        except OSError as error:
            log.debug(f"{self._path}: {error.strerror}")

    def release(self) -> None:
        """Remove the lock, unless another process has taken it over."""
        try:
            if os.fstat(self._fd).st_ino == os.stat(self._path).st_ino:
                os.unlink(self._path)
        except OSError as error:
            log.debug(f"{self._path}: {error.strerror}")
        os.close(self._fd)


def _host() -> str:
    return os.uname().nodename


def _start(pid: int) -> str:
    """Return the start time of a process in the kernel's clock ticks; "" if there is no such process."""
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


def process_name() -> str:
    """Return a name for this process that is unique among all hosts."""
    return f"{_host()}.{os.getpid()}.{_start(os.getpid())}"


def identity() -> dict[str, Any]:
    """Return a record by which `is_dead` and `is_alive` find this process."""
    return {"host": _host(), "pid": os.getpid(), "start": _start(os.getpid()), "where": _namespace()}


def is_dead(record: dict[str, Any]) -> bool:
    """Whether a record's process has certainly ended. False if it is on another host or in another pid namespace."""
    pid, start, where = record.get("pid"), record.get("start"), record.get("where")
    if not isinstance(pid, int) or not where or record.get("host") != _host():
        return False
    if str(where).split(" ")[0] != _namespace().split(" ")[0]:
        return True  # this host has been rebooted since
    return where == _namespace() and _start(pid) != start


def is_alive(record: dict[str, Any]) -> bool:
    """Whether a record's process is certainly alive. False if it can't be seen from here."""
    pid, start = record.get("pid"), record.get("start")
    if not isinstance(pid, int) or record.get("host") != _host() or record.get("where") != _namespace():
        return False
    return bool(start) and _start(pid) == start


class Locks:
    """The locks of one cache, in `directory`."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    @contextmanager
    def hold(
        self,
        name: str,
        done: Callable[[], _Found | None],
        waiting: Callable[[str], None] | None = None,
    ) -> Iterator[tuple[_Found | None, Lock | None]]:
        """Wait until `done` returns something, or the lock `name` is free; yield the result, or None and the lock.

        `waiting` is called from time to time with the holder's host and progress.
        """
        path = self._path(name)
        while True:
            lock = Lock.create(path)
            try:
                found = done()
                if lock is not None or found is not None:
                    yield found, lock if found is None else None
                    return
            finally:
                if lock is not None:
                    lock.release()
            holder = self.holder(name)
            if holder is not None:
                if waiting is not None:
                    waiting(holder)
                time.sleep(_POLL_SECONDS if waiting is not None else _QUICK_SECONDS)

    def beat(self, name: str) -> float | None:
        """Return the time of the lock's last update, by the file server's clock; None if nobody holds it."""
        try:
            return os.stat(self._path(name)).st_mtime
        except OSError:
            return None

    def is_abandoned(self, name: str) -> bool:
        """Whether the lock's holder has certainly ended, which can be determined only on the holder's host."""
        return is_dead(read_record(self._path(name)))

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name[:200])

    def holder(self, name: str) -> str | None:
        """Return the holder's host and progress; None if nobody holds the lock. Removes a stale lock."""
        path = self._path(name)
        age = self._age(path)
        if age is None:
            return None
        record = read_record(path)
        if age < STALE_SECONDS and not is_dead(record):
            return f"{record.get('host', 'another host')}: {record.get('progress') or 'has begun'}"
        # If several processes see the stale lock, one of them can rename it. What it renames may already be a new lock,
        # which is then put back.
        private = f"{path}.{process_name()}"
        try:
            os.rename(path, private)
        except OSError:
            return None
        age = self._age(private)
        if age is not None and age < STALE_SECONDS and not is_dead(read_record(private)):
            try:
                os.link(private, path)
            except OSError as error:
                log.debug(f"{path}: {error.strerror}")
        else:
            log.debug(f"{path}: its holder has ended")
        remove(private)
        return None

    def _age(self, path: str) -> float | None:
        """Return a file's age in seconds, by the file server's clock, which may differ from this host's."""
        probe = os.path.join(self._directory, f".now.{process_name()}")
        try:
            with open(probe, "w") as file:
                file.write(".")
            now = os.stat(probe).st_mtime
            return now - os.stat(path).st_mtime
        except OSError:
            return None
        finally:
            remove(probe)
