# SPDX-License-Identifier: Apache-2.0
"""The loopback device of a container that has its own network namespace. Loaded only for those."""

from __future__ import annotations

import _socket
import fcntl
import sys

from ..errors import ChError

_SIOCSIFFLAGS = 0x8914  # linux/sockios.h
_IFF_UP = 1


def bring_up() -> None:
    """Bring up `lo` in this process's network namespace, so that its programs reach each other; ChError."""
    request = b"lo".ljust(16, b"\0") + _IFF_UP.to_bytes(2, sys.byteorder).ljust(24, b"\0")
    try:
        any_socket = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
        try:
            fcntl.ioctl(any_socket.fileno(), _SIOCSIFFLAGS, request)
        finally:
            any_socket.close()
    except OSError as error:
        raise ChError("can't set up the loopback device of the container's network") from error
