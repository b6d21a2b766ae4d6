# SPDX-License-Identifier: Apache-2.0
"""The ticket: the message by which the launcher lets a node's tasks into the container.

It is one SEQPACKET message: a header and three or more descriptors (user namespace, mount
namespace, plan; the relay's socket, if there is one; further namespaces). It is sent only once.
Every task peeks at it (MSG_PEEK duplicates the descriptors) and leaves it in the queue. So one
message serves any number of tasks, and no task can take it from the others.
"""

from __future__ import annotations

from .. import agreement, linux, log
from .. import lean_os as os
from ..errors import ChError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

MAGIC = agreement.TICKET_MAGIC.encode()


class TaskSocket:
    """The writing end of the tasks' socket."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def issue(self, user_fd: int, mount_fd: int, plan_fd: int, relay_fd: int = -1, more: Sequence[int] = ()) -> None:
        """Hand out the ticket; ChError if the kernel refuses."""
        fds = (*(user_fd, mount_fd, plan_fd, relay_fd)[: 3 + (relay_fd >= 0)], *more)
        try:
            linux.sendmsg(self._fd, _message(0), fds)
        except BrokenPipeError:
            log.info("all tasks are gone")
        except OSError as error:
            raise ChError("can't hand out the ticket") from error

    def refuse(self, code: int) -> None:
        """Tell the tasks to exit with `code`."""
        try:
            os.write(self._fd, _message(code))
        except BrokenPipeError:
            log.info("all tasks are gone")
        except OSError as error:
            raise ChError("can't refuse the ticket") from error

    def close(self) -> None:
        """Close the socket: tasks that have no ticket read end of file."""
        os.close(self._fd)


def _message(code: int) -> bytes:
    return MAGIC + code.to_bytes(4, "little")
