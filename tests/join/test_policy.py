# SPDX-License-Identifier: Apache-2.0
"""If the kernel's policy refuses sockets, the peers meet by POSIX names, or report what is missing."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable

import pytest

from tests import leftovers

from .conftest import Peer, Place

STAY = ("sh", "-c", "readlink /proc/self/ns/mnt; read x")

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_RET_ALLOW, _RET_ERRNO = 0x7FFF0000, 0x00050000
_SYS = {"x86_64": {"socket": 41, "connect": 42, "bind": 49}, "aarch64": {"socket": 198, "connect": 203, "bind": 200}}
_SYS_landlock_create_ruleset, _SYS_landlock_restrict_self = 444, 446
_SCOPE_ABSTRACT_UNIX_SOCKET = 1

_libc = ctypes.CDLL(None, use_errno=True)


def _must(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def refuse(name: str, error: int) -> Callable[[], None]:
    """Have a process's calls of that name fail from now on, as by a policy of the whole machine."""
    number = _SYS[os.uname().machine][name]
    # Load the number; is it this one? the error : go on.
    program = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, _RET_ERRNO | error), (0x06, 0, 0, _RET_ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in program))

    def before() -> None:
        head = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
        _must(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        _must(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, head, 0, 0))

    return before


def scope() -> None:
    """Put this process into a Landlock domain: abstract sockets from outside of it can't be reached any more."""
    attributes = struct.pack("QQQ", 0, 0, _SCOPE_ABSTRACT_UNIX_SOCKET)
    ruleset = _must(_libc.syscall(_SYS_landlock_create_ruleset, attributes, len(attributes), 0))
    _must(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _must(_libc.syscall(_SYS_landlock_restrict_self, ruleset, 0))
    os.close(ruleset)


def together(peers: list[Peer]) -> None:
    """Assert that all are in one container."""
    assert len({peer.line() for peer in peers}) == 1
    for peer in peers:
        peer.go()
    assert [peer.end() for peer in peers] == [(0, "", "")] * len(peers)


@pytest.mark.parametrize(
    ("call", "error"),
    [("socket", errno.EPERM), ("socket", errno.EACCES), ("bind", errno.EACCES), ("connect", errno.EPERM)],
)
@pytest.mark.row("J2", "E5")
def test_all_are_refused(place: Place, call: str, error: int) -> None:
    """They meet in shared memory, and leave nothing there."""
    together([place.start(count=3, command=STAY, preexec_fn=refuse(call, error)) for _ in range(3)])
    assert not leftovers.in_shm()


@pytest.mark.row("E5")
def test_all_are_in_one_landlock_domain(place: Place) -> None:
    """As under a confined shell of a batch system: the peers reach each other."""
    line = " & ".join([" ".join(place.command(count=2, command=("readlink", "/proc/self/ns/mnt")))] * 2) + "; wait"
    done = place.execute(["bash", "-c", line], env={"PATH": "/usr/bin:/bin"}, preexec_fn=scope).end()
    assert (done[0], done[2]) == (0, "")
    assert not leftovers.in_shm()


@pytest.mark.row("E5")
def test_each_is_in_a_landlock_domain_of_its_own(place: Place) -> None:
    """A peer that can't reach the others reports that they did not come; the first peer runs."""
    first = place.start("--join-timeout=1", count=2, command=STAY, preexec_fn=scope)
    assert first.line()
    code, out, err = place.start("--join-timeout=1", count=2, preexec_fn=scope).end()
    assert (code, out, err.count("\n")) == (32, "", 1)
    assert f"join: {place.tag}: " in err
    assert "1 never arrived" in err
    first.go()
    assert first.end() == (0, "", "")
    assert not leftovers.in_shm()
