# SPDX-License-Identifier: Apache-2.0
"""The named join: unrelated processes of one node meet and share namespaces.

Two POSIX objects carry it, both of mode 0600 and of the name
`slurm_ch-UID-TAG`: a shared-memory segment, whose exclusive creation makes
the meeting place, and a semaphore that wakes waiters.

The kernel doesn't release a semaphore when its holder is killed, so neither
exclusion nor liveness rests on it. They rest on record locks on the segment,
which the kernel drops at a process's death: byte 0 is a mutex for short
sections, byte FIRST_SLOT + i is held by peer i for as long as it takes part.

The first peer to register wins, containerizes and publishes. The others open
its namespaces; when all have, the winner closes its door: it becomes undumpable,
because it holds the host's /dev/shm, and root in the container could look at it.
Then the others enter. All wait until the last one is in (so that a command that
ends at once strands nobody); the last one unlinks both objects.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import struct
import time

import posix_ipc

from .. import linux, log
from ..agreement import EXIT_JOIN
from ..errors import JoinError, UsageError
from ..request import step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SHM = "/dev/shm"
MUTEX = 0
FIRST_SLOT = 2

# Waiters look around at least this often: a death wakes nobody.
_LOOK_SECONDS = 0.05
# For so long a failed join tells late peers so; then its tag is free again.
_MOURNING_SECONDS = 30

# What is younger may be somebody's who is just about to lock it.
_NEWBORN_SECONDS = 5.0

_MAGIC = 0x736C6A33
_HEADER = struct.Struct("=IIIIiI")  # magic, state, count, arrived, code, time of failure
_SLOT = struct.Struct("=iI32s")  # pid, state, name
_SEMAPHORE_SIZE = 32  # sizeof(sem_t) where pointers have 64 bits
_FLOCK = struct.Struct("@hhqqi0q")

_EMPTY, _PUBLISHED, _FAILED, _ABORTED, _CLOSED = range(5)
_ARRIVED, _JOINED, _OPENED = 1, 2, 3


class JoinFailed(JoinError):
    """Another peer failed and has said why; `code` is its exit status."""

    silent = True

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class Peer:
    """One process's part in a join of `count` peers under `tag`.

    `timeout` is in seconds and bounds the whole join. All methods raise
    JoinError; UsageError for a tag or count that can't be.
    """

    def __init__(self, tag: str, count: int, timeout: float = 30.0, name: str = "peer") -> None:
        step.check_join(tag, count)
        self.tag = tag
        self.count = count
        self.timeout = timeout
        self.name = name
        # Kept, because inside the container the uid may be another.
        self._uid = os.geteuid()
        self._prefix = f"slurm_ch-{self._uid}-"
        self._object = self._prefix + tag
        # /dev/shm by descriptor: after joining, the path may lead elsewhere.
        self._shm = os.open(SHM, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._deadline = time.monotonic() + timeout
        self._fd = -1
        self._slot = -1
        self._map: mmap.mmap
        self._semaphore = self._open_semaphore()

    # ---- The steps of a join ----

    def arrive(self) -> bool:
        """Register; return whether this peer is the winner, who must containerize and publish."""
        while True:
            self._open_segment()
            self._lock_mutex()
            if self._is_linked():
                try:
                    return self._register()
                finally:
                    self._unlock_mutex()
            self._close_segment()

    def publish(self) -> None:
        """Let the losers open the namespaces: this process is in the ones to be joined."""
        linux.prctl_dumpable(True)
        self._set_slot(self._slot, _OPENED)
        self._set_state(_PUBLISHED)

    def fail(self, code: int) -> None:
        """Tell the losers that the winner failed, and leave."""
        self._set_state(_FAILED, code)
        self._leave()

    def wait_for_winner(self) -> tuple[int, int]:
        """Return descriptors of the winner's user and mount namespace, when they may be entered."""
        self._wait(lambda: self._header()[1] in (_PUBLISHED, _CLOSED), "for the winner")
        pid = self._read_slot(0)[0]
        try:
            fds = tuple(os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in ("user", "mnt"))
        except OSError as error:
            raise self._abort(f"can't open the namespaces of the winner, pid {pid}") from error
        if not self._alive(0):
            # Else the pid could be somebody else's by now.
            raise self._abort(f"the winner, {self._who(0)}, died")
        self._set_slot(self._slot, _OPENED)
        if self._all(_OPENED, _JOINED):
            self._wake()
        self._wait(lambda: self._header()[1] == _CLOSED, "for all to join")
        return fds[0], fds[1]

    def done(self) -> None:
        """Wait until every peer is in; the last one removes the objects."""
        if self._slot == 0:
            self._close_door()
        self._set_slot(self._slot, _JOINED)
        if self._all(_JOINED):
            self._unlink()
            self._wake()
        else:
            self._wait(lambda: self._all(_JOINED), "for all to join")
        self._close()

    def _close_door(self) -> None:
        """Let the losers enter, when none needs to look at this process any more."""
        self._wait(lambda: self._all(_OPENED, _JOINED), "for all to join")
        linux.prctl_dumpable(False)
        self._set_state(_CLOSED)

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
            # What was opened may be another's, who has taken the name away since.
            if status is not None and status.st_ino in _mapped(name):
                if status.st_size < _SEMAPHORE_SIZE:
                    raise JoinError(f"join: {SHM}/{name} is no semaphore; refusing to use it")
                return semaphore
            semaphore.close()
            self._check_time()

    def _check_owner(self, name: str) -> os.stat_result | None:
        """Refuse what another user made under our name, or what others can write."""
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
        """Remove the name that a semaphore was made under, for one who is about to, or was killed before.

        sem_open(3) makes it as sem.XXXXXX, links it to its own name, and doesn't mind who unlinks the first.
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
        """Raise JoinError when somebody has been in our way for too long."""
        if time.monotonic() > self._deadline:
            raise JoinError(f"join: {SHM}/{self._object} keeps disappearing (tried for {self.timeout:g} s)")

    def _check_status(self, status: os.stat_result, name: str) -> None:
        if status.st_uid != self._uid:
            raise JoinError(f"join: {SHM}/{name} belongs to uid {status.st_uid}; refusing to use it")
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise JoinError(f"join: {SHM}/{name} is not a file of its own; refusing to use it")
        if status.st_mode & 0o077:
            raise JoinError(f"join: {SHM}/{name} is open to others; refusing to use it")

    def _open_segment(self) -> None:
        self._fd = -1
        while self._fd < 0:
            self._fd = self._create_segment()
            if self._fd < 0:
                self._check_time()
                self._fd = self._find_segment()
        self._check_status(os.fstat(self._fd), self._object)

    def _create_segment(self) -> int:
        """Return a new segment's descriptor, or -1 when there is one."""
        size = _HEADER.size + self.count * _SLOT.size
        try:
            memory = posix_ipc.SharedMemory("/" + self._object, posix_ipc.O_CREX, mode=0o600, size=size)
        except posix_ipc.ExistentialError:
            return -1
        os.set_inheritable(memory.fd, False)
        return int(memory.fd)

    def _find_segment(self) -> int:
        """Return the existing segment's descriptor, or -1 when it is gone again."""
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return os.open(self._object, flags, dir_fd=self._shm)
        except FileNotFoundError:
            return -1
        except OSError as error:
            self._check_owner(self._object)
            raise JoinError(f"join: can't open {SHM}/{self._object}") from error

    def _close_segment(self) -> None:
        os.close(self._fd)
        self._fd = -1

    def _is_linked(self) -> bool:
        """Whether the segment that we opened is still the one of that name."""
        try:
            status = os.stat(self._object, dir_fd=self._shm, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return status.st_ino == os.fstat(self._fd).st_ino

    # ---- Registration, under the mutex ----

    def _register(self) -> bool:
        size = os.fstat(self._fd).st_size
        known = os.pread(self._fd, _HEADER.size, 0)
        fields = _HEADER.unpack(known) if len(known) == _HEADER.size else (0,) * 6
        magic, state, count, arrived, code, failed_at = fields
        failed = magic == _MAGIC and state in (_FAILED, _ABORTED)
        alive = self._anyone_alive()
        if failed and arrived < count and (alive or _now() - failed_at < _MOURNING_SECONDS):
            os.pwrite(self._fd, _HEADER.pack(magic, state, count, arrived + 1, code, failed_at), 0)
            if arrived + 1 == count and not alive:
                self._unlink()
            raise JoinFailed(f"join: {self.tag} failed before", _status(code))
        if magic != _MAGIC or not alive:
            # New, or of peers that are all dead: ours from now on.
            if arrived:
                log.info(f"join: taking over from {arrived} dead peers")
            os.ftruncate(self._fd, 0)
            self._make_room(_HEADER.size + self.count * _SLOT.size)
            state, count, arrived = _EMPTY, self.count, 0
        elif count != self.count or size < _HEADER.size + count * _SLOT.size:
            raise UsageError(f"--join-ct={self.count}: other peers of {self.tag} say {count}")
        elif arrived >= count:
            raise JoinError(f"join: more than {count} peers of {self.tag}")
        self._map = mmap.mmap(self._fd, _HEADER.size + self.count * _SLOT.size)
        self._slot = arrived
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, FIRST_SLOT + self._slot)
        except OSError as error:
            raise JoinError(f"join: {SHM}/{self._object}: the place of peer {self._slot} is taken") from error
        name = self.name.encode("utf-8", "replace")[:32]
        _SLOT.pack_into(self._map, self._offset(self._slot), os.getpid(), _ARRIVED, name)
        _HEADER.pack_into(self._map, 0, _MAGIC, state, count, arrived + 1, 0, 0)
        if self._slot == 0:
            self._sweep()
        return self._slot == 0

    def _make_room(self, size: int) -> None:
        """Give the segment its memory now: a write to a page that there is no room for would kill us."""
        try:
            os.posix_fallocate(self._fd, 0, size)
        except OSError as error:
            self._unlink()
            raise JoinError(f"join: no room for {self.count} peers in {SHM}/{self._object}") from error

    def _anyone_alive(self) -> bool:
        return self._locked(FIRST_SLOT, 0)

    def _sweep(self) -> None:
        """Remove what killed joins of ours left behind on this node."""
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
            # A semaphore goes with its segment.
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

    # ---- Locks ----

    def _lock_mutex(self) -> None:
        while True:
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, MUTEX)
                return
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise JoinError(f"join: can't lock {SHM}/{self._object}") from error
            if time.monotonic() > self._deadline:
                raise JoinError(f"join: {SHM}/{self._object} stays locked for {self.timeout:g} s")
            self._pause(0.002)

    def _unlock_mutex(self) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, MUTEX)

    def _locked(self, start: int, length: int) -> bool:
        return _locked(self._fd, start, length)

    def _alive(self, slot: int) -> bool:
        return slot == self._slot or self._locked(FIRST_SLOT + slot, 1)

    # ---- The segment's contents ----

    def _header(self) -> tuple[int, int, int, int, int]:
        magic, state, count, arrived, code, _ = _HEADER.unpack_from(self._map, 0)
        return magic, state, count, arrived, code

    def _set_state(self, state: int, code: int = 0) -> bool:
        """Change the state unless the join failed before; return whether it was changed."""
        self._lock_mutex()
        try:
            magic, before, count, arrived, _ = self._header()
            changed = before not in (_FAILED, _ABORTED)
            if changed and state == _ABORTED:
                count = self._still_to_hear(count, arrived)
            if changed:
                _HEADER.pack_into(self._map, 0, magic, state, count, arrived, code, _now())
        finally:
            self._unlock_mutex()
        self._wake()
        return changed

    def _still_to_hear(self, count: int, arrived: int) -> int:
        """Return how many peers will have come when all who live have heard of the failure."""
        alive = _siblings_alive()
        if alive is None:
            return count
        return min(count, alive + sum(not self._alive(slot) for slot in range(arrived)))

    @staticmethod
    def _offset(slot: int) -> int:
        return _HEADER.size + slot * _SLOT.size

    def _read_slot(self, slot: int) -> tuple[int, int, str]:
        pid, state, name = _SLOT.unpack_from(self._map, self._offset(slot))
        return pid, state, name.rstrip(b"\0").decode("utf-8", "replace")

    def _set_slot(self, slot: int, state: int) -> None:
        pid, _, name = _SLOT.unpack_from(self._map, self._offset(slot))
        _SLOT.pack_into(self._map, self._offset(slot), pid, state, name)

    def _all(self, *states: int) -> bool:
        """Whether every peer is in one of the states."""
        arrived = self._header()[3]
        return arrived == self.count and all(self._read_slot(slot)[1] in states for slot in range(arrived))

    def _joined(self) -> int:
        return sum(self._read_slot(slot)[1] == _JOINED for slot in range(self._header()[3]))

    def _who(self, slot: int) -> str:
        pid, _, name = self._read_slot(slot)
        return f"{name} (pid {pid})"

    # ---- Waiting ----

    def _pause(self, seconds: float) -> None:
        try:
            self._semaphore.acquire(seconds)
        except posix_ipc.BusyError:
            pass
        except posix_ipc.SignalError:
            raise KeyboardInterrupt from None

    def _wake(self) -> None:
        for _ in range(self.count):
            self._semaphore.release()

    def _wait(self, ready: Callable[[], bool], what: str) -> None:
        while not ready():
            self._check_failure()
            self._check_deaths()
            if time.monotonic() > self._deadline:
                raise self._abort(self._missing(what))
            self._pause(_LOOK_SECONDS)

    def _has_failed(self) -> bool:
        return self._header()[1] in (_FAILED, _ABORTED)

    def _check_failure(self) -> None:
        _, state, _, _, code = self._header()
        if state in (_FAILED, _ABORTED):
            self._leave()
            raise JoinFailed(f"join: {self.tag}: another peer failed", _status(code))

    def _check_deaths(self) -> None:
        # Look at the lock first: a peer sets its state before it lets go.
        for slot in range(self._header()[3]):
            if not self._alive(slot) and self._read_slot(slot)[1] != _JOINED and not self._has_failed():
                raise self._abort(f"{self._who(slot)} died")
        if self._header()[1] == _EMPTY and not self._alive(0):
            raise self._abort(f"the winner, {self._who(0)}, died")
        alive = _siblings_alive()
        # Who has joined may end at any time once all have: look at that last.
        if alive is not None and alive < self.count and self._joined() < self.count:
            raise self._abort(f"only {alive} of {self.count} tasks are alive")

    def _missing(self, what: str) -> str:
        arrived = self._header()[3]
        names = ", ".join(self._read_slot(slot)[2] for slot in range(arrived))
        return (
            f"waited {self.timeout:g} s {what}: {arrived} of {self.count} peers arrived ({names});"
            f" {self.count - arrived} never arrived, {arrived - self._joined()} arrived but did not join"
        )

    # ---- Leaving ----

    def _abort(self, why: str) -> JoinError:
        """Let everybody fail; return the error to raise: loud for the first who saw it."""
        first = self._set_state(_ABORTED, EXIT_JOIN)
        self._leave()
        text = f"join: {self.tag}: {why}"
        return JoinError(text) if first else JoinFailed(text, EXIT_JOIN)

    def _leave(self) -> None:
        """Go after a failure; the last one removes the objects, unless some are still to hear of it."""
        if self._fd < 0:
            return
        try:
            self._lock_mutex()
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, FIRST_SLOT + self._slot)
            _, _, count, arrived, _ = self._header()
            nobody_to_come = arrived >= count or time.monotonic() > self._deadline
            if nobody_to_come and not self._anyone_alive() and self._is_linked():
                self._unlink()
        finally:
            self._close()

    def _unlink(self) -> None:
        self._unlink_one(self._object)
        self._unlink_one("sem." + self._object)

    def _unlink_one(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self._shm)
        except (FileNotFoundError, PermissionError, IsADirectoryError):
            # Gone, or another's by now who has taken the name.
            pass

    def _close(self) -> None:
        self._map.close()
        self._close_segment()
        self._semaphore.close()
        os.close(self._shm)


def _status(code: int) -> int:
    """Return an exit status that is none of success's, whatever the segment says."""
    return code if 0 < code < 256 else EXIT_JOIN


def _mapped(name: str) -> set[int]:
    """Return the inodes of what this process has mapped and whose file is or was called `name`."""
    with open("/proc/self/maps", "rb") as file:
        lines = [line.split() for line in file]
    return {int(line[4]) for line in lines if len(line) > 5 and line[5] == f"{SHM}/{name}".encode()}


def _now() -> int:
    return int(time.clock_gettime(time.CLOCK_BOOTTIME))


def _locked(fd: int, start: int, length: int) -> bool:
    """Whether another process holds a lock in the range; length 0 means to the end."""
    question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
    answer: bytes = fcntl.fcntl(fd, fcntl.F_GETLK, question)
    kind: int = _FLOCK.unpack(answer)[0]
    return kind != fcntl.F_UNLCK


def _siblings_alive() -> int | None:
    """Return how many of this step's tasks live here, or None when that can't be known.

    A task killed before it registers leaves no trace in the segment. All
    tasks of a node are children of one slurmstepd, forked before any runs.
    """
    parent = os.getppid()
    try:
        with open(f"/proc/{parent}/comm") as file:
            if not file.read().startswith("slurmstepd"):
                return None
        alive = 0
        for thread in os.listdir(f"/proc/{parent}/task"):
            with open(f"/proc/{parent}/task/{thread}/children") as file:
                alive += sum(_is_alive(pid) for pid in file.read().split())
    except OSError:
        return None
    return alive


def _is_alive(pid: str) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
