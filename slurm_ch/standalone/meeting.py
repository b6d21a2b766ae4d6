# SPDX-License-Identifier: Apache-2.0
"""The meeting place of a named join: two POSIX objects, the check of their owner, and the locks on them.

Both objects have mode 0600 and the name `slurm_ch-UID-TAG`. The shared-memory
segment is created exclusively, and that establishes the meeting place. The
semaphore wakes waiting peers.

The kernel doesn't release a semaphore when its holder is killed. So exclusion and
liveness depend on record locks on the segment, which the kernel releases when a
process dies. Byte 0 is a mutex for short critical sections; peer i holds the lock on
byte FIRST_SLOT + i as long as it takes part.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import time

import posix_ipc

from .. import log
from ..errors import JoinError

SHM = "/dev/shm"
MUTEX = 0
FIRST_SLOT = 2

# The creator of a younger object may not have locked it yet.
_NEWBORN_SECONDS = 5.0

_SEMAPHORE_SIZE = 32  # sizeof(sem_t) where pointers have 64 bits
_FLOCK = struct.Struct("@hhqqi0q")


class Meeting:
    """The two objects of a tag, opened by this process. All methods raise JoinError.

    `timeout`: seconds to wait for a lock, or for a name that keeps disappearing.
    """

    def __init__(self, tag: str, timeout: float) -> None:
        # Looked up now: inside the container, the uid may differ.
        self._uid = os.geteuid()
        self._prefix = f"slurm_ch-{self._uid}-"
        self._object = self._prefix + tag
        self.path = f"{SHM}/{self._object}"
        # /dev/shm by descriptor: after joining, the path may lead elsewhere.
        self._shm = os.open(SHM, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout
        self.fd = -1
        self._semaphore = self._open_semaphore()

    def is_late(self) -> bool:
        """Whether the timeout has passed."""
        return time.monotonic() > self._deadline

    # ---- Opening ----

    def _open_semaphore(self) -> posix_ipc.Semaphore:
        name = f"sem.{self._object}"
        while True:
            self._check_owner(name)
            try:
                semaphore = posix_ipc.Semaphore("/" + self._object, posix_ipc.O_CREAT, mode=0o600, initial_value=0)
            except (posix_ipc.Error, OSError, ValueError) as error:
                self._check_owner(name)
                raise JoinError(f"join: can't open semaphore /{self._object}: {error}") from None
            status = self._check_owner(name)
            # Check that the opened object still has the name: another user may have had the name for a moment.
            if status is not None and status.st_ino in _mapped(name):
                if status.st_size < _SEMAPHORE_SIZE:
                    raise JoinError(f"join: {SHM}/{name} is not a semaphore; refusing to use it")
                return semaphore
            semaphore.close()
            self._check_time()

    def _check_owner(self, name: str) -> os.stat_result | None:
        """Raise JoinError if another user made the object, or others can write to it; None if it doesn't exist."""
        try:
            status = os.stat(name, dir_fd=self._shm, follow_symlinks=False)
            if status.st_nlink > 1 and status.st_uid == self._uid:
                self._unlink_first_name(status.st_ino)
                status = os.stat(name, dir_fd=self._shm, follow_symlinks=False)
        except FileNotFoundError:
            return None
        self._check_status(status, name)
        return status

    def _unlink_first_name(self, inode: int) -> None:
        """Remove a semaphore's temporary name, which its creator hasn't removed yet, or couldn't because it was killed.

        sem_open(3) creates it as sem.XXXXXX, links it to its final name, and unlinks the first; it doesn't fail if
        that name is already gone.
        """
        for name in os.listdir(SHM):
            if len(name) == len("sem.XXXXXX") and name.startswith("sem.") and self._inode(name) == inode:
                self._unlink_one(name)

    def _inode(self, name: str) -> int:
        try:
            return os.stat(name, dir_fd=self._shm, follow_symlinks=False).st_ino
        except FileNotFoundError:
            return -1

    def _check_time(self) -> None:
        """Raise JoinError if an object has kept disappearing until the timeout."""
        if self.is_late():
            raise JoinError(f"join: {self.path} keeps disappearing (tried for {self._timeout:g} s)")

    def _check_status(self, status: os.stat_result, name: str) -> None:
        if status.st_uid != self._uid:
            raise JoinError(f"join: {SHM}/{name} belongs to uid {status.st_uid}; refusing to use it")
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise JoinError(f"join: {SHM}/{name} is not a file of its own; refusing to use it")
        if status.st_mode & 0o077:
            raise JoinError(f"join: {SHM}/{name} is open to others; refusing to use it")

    def open_segment(self, size: int) -> None:
        """Create the segment, of `size` bytes, or open the existing one."""
        self.fd = -1
        while self.fd < 0:
            self.fd = self._create_segment(size)
            if self.fd < 0:
                self._check_time()
                self.fd = self._find_segment()
        self._check_status(os.fstat(self.fd), self._object)

    def _create_segment(self, size: int) -> int:
        """Create the segment and return its descriptor, or -1 if it exists."""
        try:
            memory = posix_ipc.SharedMemory("/" + self._object, posix_ipc.O_CREX, mode=0o600, size=size)
        except posix_ipc.ExistentialError:
            return -1
        os.set_inheritable(memory.fd, False)
        return int(memory.fd)

    def _find_segment(self) -> int:
        """Return the existing segment's descriptor, or -1 if it has disappeared."""
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return os.open(self._object, flags, dir_fd=self._shm)
        except FileNotFoundError:
            return -1
        except OSError as error:
            self._check_owner(self._object)
            raise JoinError(f"join: can't open {self.path}") from error

    def close_segment(self) -> None:
        """Close the segment; it isn't changed."""
        os.close(self.fd)
        self.fd = -1

    def is_linked(self) -> bool:
        """Whether the opened segment still has its name."""
        try:
            status = os.stat(self._object, dir_fd=self._shm, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return status.st_ino == os.fstat(self.fd).st_ino

    def allocate(self, size: int, count: int) -> None:
        """Clear the segment and allocate its memory: without memory, a later write would kill this process (SIGBUS)."""
        os.ftruncate(self.fd, 0)
        try:
            os.posix_fallocate(self.fd, 0, size)
        except OSError as error:
            self.unlink()
            raise JoinError(f"join: no room for {count} peers in {self.path}") from error

    # ---- Locks ----

    def lock_mutex(self) -> None:
        """Enter the critical section, after waiting for other peers to leave it."""
        while True:
            try:
                fcntl.lockf(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, MUTEX)
                return
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise JoinError(f"join: can't lock {self.path}") from error
            if self.is_late():
                raise JoinError(f"join: {self.path} stays locked for {self._timeout:g} s")
            self.pause(0.002)

    def unlock_mutex(self) -> None:
        """Leave the critical section."""
        fcntl.lockf(self.fd, fcntl.LOCK_UN, 1, MUTEX)

    def take_slot(self, slot: int) -> None:
        """Lock a peer's slot until this process ends."""
        try:
            fcntl.lockf(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, FIRST_SLOT + slot)
        except OSError as error:
            raise JoinError(f"join: {self.path}: the place of peer {slot} is taken") from error

    def leave_slot(self, slot: int) -> None:
        """Unlock a peer's slot."""
        fcntl.lockf(self.fd, fcntl.LOCK_UN, 1, FIRST_SLOT + slot)

    def is_held(self, slot: int) -> bool:
        """Whether another process has locked this slot."""
        return _locked(self.fd, FIRST_SLOT + slot, 1)

    def anyone_alive(self) -> bool:
        """Whether another process has locked any slot."""
        return _locked(self.fd, FIRST_SLOT, 0)

    # ---- Waking ----

    def pause(self, seconds: float) -> None:
        """Wait until another peer calls `wake`, or until `seconds` have passed."""
        try:
            self._semaphore.acquire(seconds)
        except posix_ipc.BusyError:
            pass
        except posix_ipc.SignalError:
            raise KeyboardInterrupt from None

    def wake(self, count: int) -> None:
        """Wake `count` waiting peers."""
        for _ in range(count):
            self._semaphore.release()

    # ---- Leaving ----

    def sweep(self) -> None:
        """Remove the objects that this user's killed joins have left on this node."""
        for name in os.listdir(SHM):
            plain = name.removeprefix("sem.")
            if not plain.startswith(self._prefix) or plain == self._object:
                continue
            try:
                self._sweep_one(name, plain)
            except OSError as error:
                log.debug(f"join: {SHM}/{name}: {error.strerror}")

    def _sweep_one(self, name: str, plain: str) -> None:
        status = os.stat(name, dir_fd=self._shm, follow_symlinks=False)
        if status.st_uid != self._uid or time.time() - status.st_ctime < _NEWBORN_SECONDS:
            return
        if name != plain:
            # A semaphore is removed together with its segment, or if that is missing.
            try:
                os.stat(plain, dir_fd=self._shm, follow_symlinks=False)
            except FileNotFoundError:
                os.unlink(name, dir_fd=self._shm)
            return
        fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._shm)
        try:
            if not _locked(fd, 0, 0):
                log.info(f"join: removing what was left of {name}")
                os.unlink(name, dir_fd=self._shm)
                self._unlink_one("sem." + name)
        finally:
            os.close(fd)

    def unlink(self) -> None:
        """Remove both objects."""
        self._unlink_one(self._object)
        self._unlink_one("sem." + self._object)

    def _unlink_one(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self._shm)
        except (FileNotFoundError, PermissionError, IsADirectoryError):
            # It is gone, or another user has taken the name.
            pass

    def close(self) -> None:
        """Close both objects; other peers may still use them."""
        self.close_segment()
        self._semaphore.close()
        os.close(self._shm)


def _mapped(name: str) -> set[int]:
    """Return the inodes of this process's mappings whose file in /dev/shm has or had this name."""
    with open("/proc/self/maps", "rb") as file:
        lines = [line.split() for line in file]
    return {int(line[4]) for line in lines if len(line) > 5 and line[5] == f"{SHM}/{name}".encode()}


def _locked(fd: int, start: int, length: int) -> bool:
    """Whether another process holds a lock in the range; length 0 means to the end."""
    question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
    answer: bytes = fcntl.fcntl(fd, fcntl.F_GETLK, question)
    kind: int = _FLOCK.unpack(answer)[0]
    return kind != fcntl.F_UNLCK
