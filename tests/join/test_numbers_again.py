# SPDX-License-Identifier: Apache-2.0
"""The process that has the join's name is identified by more than its pid, which may be reused."""

from __future__ import annotations

import os
import select
import signal
import socket
from pathlib import Path

import pytest

from .conftest import Place

LAST_PID = Path("/proc/sys/kernel/ns_last_pid")


def _takes_number(number: int, uid: int) -> int:
    """Start a process of the user that has that pid, and waits."""
    for _ in range(100):
        LAST_PID.write_text(str(number - 1))
        child = os.fork()
        if child == 0:
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            # As the command of a step: not one that only root may look at.
            os.execv("/bin/sleep", ["sleep", "600"])
        if child == number:
            return child
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    raise AssertionError(f"others are faster: no process {number}")


@pytest.mark.row("E2")
def test_whose_listener_has_ended_speaks_for_nobody(place: Place) -> None:
    """A command in a container lets a child listen, and waits until another process of the user has its own pid."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(place.name)
        child = os.fork()
        if child == 0:
            os.setresgid(place.uid, place.uid, place.uid)
            os.setresuid(place.uid, place.uid, place.uid)
            listener.listen(8)
            os._exit(0)
        os.waitpid(child, 0)
        other = _takes_number(child, place.uid)
        try:
            peer = place.start("--join-timeout=2")
            assert select.select([listener], [], [], 30)[0]
            heard, _ = listener.accept()
            with heard:
                assert heard.recv(1024) == b""
        finally:
            os.kill(other, signal.SIGKILL)
            os.waitpid(other, 0)
            peer.kill()
