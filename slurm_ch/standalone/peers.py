# SPDX-License-Identifier: Apache-2.0
"""The named join: unrelated processes of a node meet and share one container.

The peers' states are kept in the segment of their meeting place: a header, and a
record per peer.

The first peer to register is the winner: it makes the container, and publishes it.
The others (the losers) open the winner's namespaces. When all have done so, the winner
becomes undumpable, because it has the host's /dev/shm open, and root in the container could
trace it. Then the others enter. All peers wait until the last one has entered, so that no
namespace disappears when a short command ends. The last one unlinks both objects.
"""

from __future__ import annotations

import mmap
import os
import struct
import time

from .. import linux, log
from ..agreement import EXIT_JOIN
from ..errors import JoinError, UsageError
from ..request import step
from ..slurm import siblings
from .meeting import Meeting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# The interval at which waiting peers check for dead ones, which wake nobody.
_POLL_SECONDS = 0.05
# For this time, late peers of a failed join fail too. Then the tag can be used again.
_FAILURE_SECONDS = 30

_MAGIC = 0x736C6A33
_HEADER = struct.Struct("=IIIIiI")  # magic, state, count, arrived, code, time of failure
_SLOT = struct.Struct("=iI32s")  # pid, state, name

_EMPTY, _PUBLISHED, _FAILED, _ABORTED, _CLOSED = range(5)
_ARRIVED, _JOINED, _OPENED = 1, 2, 3


class JoinFailed(JoinError):
    """Another peer failed, and has reported it; `code` is its exit status."""

    silent = True

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class Peer:
    """This process as one of `count` peers of the join `tag`.

    `timeout` is for the whole join, in seconds; `name` is for messages. All methods raise
    JoinError; UsageError for an invalid tag or count.
    """

    def __init__(self, tag: str, count: int, timeout: float = 30.0, name: str = "peer") -> None:
        step.check_join(tag, count)
        self.tag = tag
        self.count = count
        self.timeout = timeout
        self.name = name
        self._slot = -1
        self._map: mmap.mmap
        self._meeting = Meeting(tag, timeout)

    # ---- The steps of a join ----

    def arrive(self) -> bool:
        """Register; return whether this peer is the winner, who must containerize and publish."""
        while True:
            self._meeting.open_segment(self._size())
            self._meeting.lock_mutex()
            if self._meeting.is_linked():
                try:
                    return self._register()
                finally:
                    self._meeting.unlock_mutex()
            self._meeting.close_segment()

    def publish(self) -> None:
        """Let the losers open the namespaces of this process, which is in the container. It becomes dumpable."""
        linux.prctl_dumpable(True)
        self._set_slot(self._slot, _OPENED)
        self._set_state(_PUBLISHED)

    def fail(self, code: int) -> None:
        """Make the losers fail too, with the exit status `code`, and leave."""
        self._set_state(_FAILED, code)
        self._leave()

    def wait_for_winner(self) -> tuple[int, int]:
        """Wait for the winner; return descriptors of its user and mount namespaces, which may be entered now."""
        self._wait(lambda: self._header()[1] in (_PUBLISHED, _CLOSED), "for the winner")
        pid = self._read_slot(0)[0]
        try:
            fds = tuple(os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in ("user", "mnt"))
        except OSError as error:
            raise self._abort(f"can't open the namespaces of the winner, pid {pid}") from error
        if not self._alive(0):
            # Otherwise the pid may have been reused.
            raise self._abort(f"the winner, {self._who(0)}, died")
        self._set_slot(self._slot, _OPENED)
        if self._all(_OPENED, _JOINED):
            self._meeting.wake(self.count)
        self._wait(lambda: self._header()[1] == _CLOSED, "for all to join")
        return fds[0], fds[1]

    def done(self) -> None:
        """Wait until every peer has entered; the last one removes the objects."""
        if self._slot == 0:
            self._admit_losers()
        self._set_slot(self._slot, _JOINED)
        if self._all(_JOINED):
            self._meeting.unlink()
            self._meeting.wake(self.count)
        else:
            self._wait(lambda: self._all(_JOINED), "for all to join")
        self._close()

    def _admit_losers(self) -> None:
        """Wait until all losers have opened the namespaces, become undumpable, and let them enter."""
        self._wait(lambda: self._all(_OPENED, _JOINED), "for all to join")
        linux.prctl_dumpable(False)
        self._set_state(_CLOSED)

    # ---- Registration, under the mutex ----

    def _register(self) -> bool:
        size = os.fstat(self._meeting.fd).st_size
        known = os.pread(self._meeting.fd, _HEADER.size, 0)
        fields = _HEADER.unpack(known) if len(known) == _HEADER.size else (0,) * 6
        magic, state, count, arrived, code, failed_at = fields
        failed = magic == _MAGIC and state in (_FAILED, _ABORTED)
        alive = self._meeting.anyone_alive()
        if failed and arrived < count and (alive or _now() - failed_at < _FAILURE_SECONDS):
            os.pwrite(self._meeting.fd, _HEADER.pack(magic, state, count, arrived + 1, code, failed_at), 0)
            if arrived + 1 == count and not alive:
                self._meeting.unlink()
            raise JoinFailed(f"join: {self.tag} failed before", _status(code))
        if magic != _MAGIC or not alive:
            # The segment is new, or all its peers are dead.
            if arrived:
                log.info(f"join: taking over from {arrived} dead peers")
            self._meeting.allocate(self._size(), self.count)
            state, count, arrived = _EMPTY, self.count, 0
        elif count != self.count or size < _HEADER.size + count * _SLOT.size:
            raise UsageError(f"--join-ct={self.count}: other peers of {self.tag} say {count}")
        elif arrived >= count:
            raise JoinError(f"join: more than {count} peers of {self.tag}")
        self._map = mmap.mmap(self._meeting.fd, self._size())
        self._slot = arrived
        self._meeting.take_slot(self._slot)
        name = self.name.encode("utf-8", "replace")[:32]
        _SLOT.pack_into(self._map, self._offset(self._slot), os.getpid(), _ARRIVED, name)
        _HEADER.pack_into(self._map, 0, _MAGIC, state, count, arrived + 1, 0, 0)
        if self._slot == 0:
            self._meeting.sweep()
        return self._slot == 0

    def _alive(self, slot: int) -> bool:
        return slot == self._slot or self._meeting.is_held(slot)

    # ---- The segment's contents ----

    def _header(self) -> tuple[int, int, int, int, int]:
        magic, state, count, arrived, code, _ = _HEADER.unpack_from(self._map, 0)
        return magic, state, count, arrived, code

    def _set_state(self, state: int, code: int = 0) -> bool:
        """Change the state unless the join failed before; return whether it was changed."""
        self._meeting.lock_mutex()
        try:
            magic, before, count, arrived, _ = self._header()
            changed = before not in (_FAILED, _ABORTED)
            if changed and state == _ABORTED:
                count = self._peers_to_fail(count, arrived)
            if changed:
                _HEADER.pack_into(self._map, 0, magic, state, count, arrived, code, _now())
        finally:
            self._meeting.unlock_mutex()
        self._meeting.wake(self.count)
        return changed

    def _peers_to_fail(self, count: int, arrived: int) -> int:
        """Return how many peers will have arrived when all that are alive have learned of the failure."""
        alive = siblings.alive()
        if alive is None:
            return count
        return min(count, alive + sum(not self._alive(slot) for slot in range(arrived)))

    def _size(self) -> int:
        return self._offset(self.count)

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

    def _wait(self, ready: Callable[[], bool], what: str) -> None:
        while not ready():
            self._check_failure()
            self._check_deaths()
            if self._meeting.is_late():
                raise self._abort(self._missing(what))
            self._meeting.pause(_POLL_SECONDS)

    def _has_failed(self) -> bool:
        return self._header()[1] in (_FAILED, _ABORTED)

    def _check_failure(self) -> None:
        _, state, _, _, code = self._header()
        if state in (_FAILED, _ABORTED):
            self._leave()
            raise JoinFailed(f"join: {self.tag}: another peer failed", _status(code))

    def _check_deaths(self) -> None:
        # The lock first, then the state: a peer sets its state before it releases the lock.
        for slot in range(self._header()[3]):
            if not self._alive(slot) and self._read_slot(slot)[1] != _JOINED and not self._has_failed():
                raise self._abort(f"{self._who(slot)} died")
        if self._header()[1] == _EMPTY and not self._alive(0):
            raise self._abort(f"the winner, {self._who(0)}, died")
        alive = siblings.alive()
        # Read last: once all have joined, a peer may end at any time.
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
        """Make all peers fail; return the error to raise. Only the first peer reports its error."""
        first = self._set_state(_ABORTED, EXIT_JOIN)
        self._leave()
        text = f"join: {self.tag}: {why}"
        return JoinError(text) if first else JoinFailed(text, EXIT_JOIN)

    def _leave(self) -> None:
        """Leave after a failure; the last peer removes the objects, unless some have yet to learn of it."""
        if self._meeting.fd < 0:
            return
        try:
            self._meeting.lock_mutex()
            self._meeting.leave_slot(self._slot)
            _, _, count, arrived, _ = self._header()
            all_arrived = arrived >= count or self._meeting.is_late()
            if all_arrived and not self._meeting.anyone_alive() and self._meeting.is_linked():
                self._meeting.unlink()
        finally:
            self._close()

    def _close(self) -> None:
        self._map.close()
        self._meeting.close()


def _status(code: int) -> int:
    """Return the exit status in the segment if it is a failure's, else EXIT_JOIN."""
    return code if 0 < code < 256 else EXIT_JOIN


def _now() -> int:
    return int(time.clock_gettime(time.CLOCK_BOOTTIME))
