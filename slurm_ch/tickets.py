"""The ticket: what the launcher hands to a node's tasks.

One SEQPACKET message: a header and three or four descriptors (user namespace,
mount namespace, plan, the relay's socket). It is sent once: every task looks at it without taking it
(MSG_PEEK duplicates the descriptors), so two namespaces are in flight however
many tasks there are, and none can take another's share.
"""

from __future__ import annotations

import _socket
import fcntl
import os

from . import log
from .errors import ChError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

MAGIC = b"slurmch1"


def plan_file(plan: bytes) -> int:
    """Return a sealed memory file that holds `plan`."""
    fd = os.memfd_create("slurm_ch-plan", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(plan)
    while view:
        view = view[os.write(fd, view) :]
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL)
    return fd


class Office:
    """The writing end of the tasks' socket."""

    __slots__ = ("_socket",)

    def __init__(self, fd: int) -> None:
        try:
            self._socket = _socket.socket(fileno=fd)
        except OSError as error:
            raise ChError(f"not a socket: descriptor {fd}") from error

    def issue(self, user_fd: int, mount_fd: int, plan_fd: int, relay_fd: int = -1) -> None:
        """Hand out the ticket; ChError if the kernel refuses."""
        self._send(0, (user_fd, mount_fd, plan_fd, relay_fd)[: 3 + (relay_fd >= 0)])

    def refuse(self, code: int) -> None:
        """Tell the tasks to exit with `code`."""
        self._send(code, ())

    def close(self) -> None:
        """Let go of the socket: tasks without a ticket read end of file."""
        self._socket.close()

    def _send(self, code: int, fds: Sequence[int]) -> None:
        message = MAGIC + code.to_bytes(4, "little")
        rights = b"".join(fd.to_bytes(4, "little") for fd in fds)
        ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)] if fds else []
        try:
            self._socket.sendmsg([message], ancillary)
        except BrokenPipeError:
            log.info("all tasks are gone")
        except OSError as error:
            raise ChError("can't hand out the ticket") from error
