# SPDX-License-Identifier: Apache-2.0
"""The named join and hostile processes: names that are taken, and false contents."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import stat
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm_ch.standalone import peers
from slurm_ch.standalone.meeting import FIRST_SLOT

from .test_join import TAG, Child, start, uid

__all__ = ["uid"]

OTHER = 65534

# `make chaos` tries many more.
FULL = os.environ.get("CHAOS") == "full"


@pytest.fixture(autouse=True)
def cleared() -> Iterator[None]:
    yield
    for path in Path("/dev/shm").glob(f"*{TAG}*"):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def squat(path: Path, what: str, owner: int, victim: Path) -> None:
    if what == "directory":
        path.mkdir()
    elif what == "FIFO":
        os.mkfifo(path)
    elif what == "link":
        path.symlink_to(victim)
    elif what == "dangling link":
        path.symlink_to(victim.with_name("new"))
    elif what == "hard link":
        os.link(victim, path)
    elif what == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    elif what == "device":
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    else:
        assert what == "empty file"
        path.touch()
    os.lchown(path, owner, owner)
    if not path.is_symlink():
        path.chmod(0o600 if owner != OTHER else 0o777)


SQUATS = ["directory", "FIFO", "link", "dangling link", "hard link", "socket", "device", "empty file"]


@pytest.mark.parametrize("kind", ["", "sem."])
@pytest.mark.parametrize("what", SQUATS)
@pytest.mark.parametrize("own", [False, True])
def test_what_stands_in_the_place_is_not_touched(uid: int, kind: str, what: str, own: bool) -> None:
    victim = Path(f"/dev/shm/victim-{TAG}")
    victim.write_text("precious" * 100)
    os.chown(victim, uid, uid)
    victim.chmod(0o600)
    path = Path(f"/dev/shm/{kind}slurm_ch-{uid}-{TAG}")
    squat(path, what, uid if own else OTHER, victim)
    began = time.monotonic()
    peer = start(uid, 1)
    code, line = peer.end(), peer.line()
    # A peer that was killed immediately leaves an empty segment of its own.
    assert code == (0 if own and what == "empty file" and not kind else 32), line
    assert code == 0 or line.startswith("error join: "), line
    assert time.monotonic() - began < peers._FAILURE_SECONDS
    assert victim.read_text() == "precious" * 100
    assert not victim.with_name("new").exists()
    assert code == 0 or path.is_symlink() or path.exists()


def header(
    magic: int = peers._MAGIC, state: int = 0, count: int = 2, arrived: int = 1, code: int = 0, at: int = 0
) -> bytes:
    return struct.pack("=IIIIiI", magic, state, count, arrived, code, at)


def slot(pid: int, state: int = peers._JOINED, name: bytes = b"liar") -> bytes:
    return struct.pack("=iI32s", pid, state, name)


def liars(outsider: int) -> list[bytes]:
    """Contents that a peer of two may find, with a held lock that shows their author to be alive."""
    pids = [-1, 0, 1, 2**31 - 1, -(2**31), outsider, os.getpid()]
    found = [header(state=peers._PUBLISHED) + slot(pid) * 2 for pid in pids]
    found += [header(state=peers._PUBLISHED, count=count, arrived=arrived) + slot(1) * 2
              for count in (0, 2, 2**31, 2**32 - 1) for arrived in (0, 1, 2, 3, 2**32 - 1)]  # fmt: skip
    found += [header(state=state) + slot(1) * 2 for state in (2, 3, 4, 2**32 - 1)]
    found += [
        b"",
        b"x",
        header()[:-1],
        header(),
        header(magic=1),
        header(code=-1, state=2),
        header(code=256, state=3),
        header(code=2**31 - 1, state=3),
    ]
    found += [header() + slot(1, name=b"\xff\x1b[31m\n" * 4) * 2]
    return found


def lie(uid: int, contents: bytes, locked: bool = True) -> Child:
    """A process of the user that takes the first peer's place with such contents."""

    def body(child: Child) -> None:
        fd = os.open(f"/dev/shm/slurm_ch-{uid}-{TAG}", os.O_CREAT | os.O_RDWR, 0o600)
        os.write(fd, contents)
        if locked:
            fcntl.lockf(fd, fcntl.LOCK_EX, 1, FIRST_SLOT)
        child.hold("lying")

    return Child(uid, body)


@pytest.mark.parametrize("locked", [True, False])
def test_contents_that_lie(uid: int, locked: bool) -> None:
    """No crash, no wait beyond the limit, and nobody's namespaces but the peers' own."""
    outsider = subprocess.Popen(["sleep", "60"], user="daemon")
    dice = random.Random(61)
    cases = liars(outsider.pid)
    cases += [dice.randbytes(dice.randrange(200)) for _ in range(50 if FULL else 5)]
    cases += [
        header(*(dice.choice([0, 1, 2, 3, 2**31 - 1]) for _ in range(5))) + dice.randbytes(80)
        for _ in range(50 if FULL else 5)
    ]
    host = os.readlink("/proc/self/ns/mnt")
    try:
        for contents in cases if locked or FULL else cases[:4]:
            liar = lie(uid, contents, locked)
            assert liar.line() == "at lying"
            peer = start(uid, 2, timeout=0.1)
            code = peer.end()
            line = peer.line()
            assert 0 < code < 256 and code != 99, (contents, code, line)
            assert line.startswith("error "), (contents, line)
            assert host not in line
            liar.go()
            assert liar.end() == 0
            for path in Path("/dev/shm").glob(f"*{TAG}*"):
                path.unlink()
            for child in (liar, peer):
                os.close(child.reports)
                os.close(child.gate)
    finally:
        outsider.kill()
        outsider.wait()


@pytest.mark.parametrize("kind", ["", "sem."])
def test_a_name_that_is_taken_before_the_end(uid: int, kind: str) -> None:
    """The last peer finds another user's object at its object's name: that object stays, and the join succeeds."""
    winner = start(uid, 2, hold="arrived")
    assert winner.line() == "at arrived"
    winner.go()
    loser = start(uid, 2, hold="entered")
    assert loser.line() == "at entered"
    path = Path(f"/dev/shm/{kind}slurm_ch-{uid}-{TAG}")
    path.unlink()
    squat(path, "empty file", OTHER, path)
    loser.go()
    assert [winner.end(), loser.end()] == [0, 0], (winner.line(), loser.line())
    assert path.stat().st_uid == OTHER


SQUATTER = r"""
import os, sys
uid, tag, kind = int(sys.argv[1]), sys.argv[2], sys.argv[3]
os.setgid(65534); os.setuid(65534); os.umask(0)
path = f"/dev/shm/{kind}slurm_ch-{uid}-{tag}"
content = bytes.fromhex(sys.argv[4])
print("ready", flush=True)
while True:
    try:
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
    except OSError:
        continue
    os.write(fd, content)
    os.ftruncate(fd, int(sys.argv[5]))
    os.close(fd)
    try:
        os.unlink(path)
    except OSError:
        pass
"""


@pytest.mark.parametrize(
    ("kind", "content", "size"),
    [
        ("", header(state=peers._PUBLISHED, arrived=2) + slot(1) * 2, 4096),
        ("sem.", b"\xff\xff\xff\x7f" + bytes(28), 32),  # a semaphore that is never zero
        ("sem.", b"", 0),  # touched, it kills
    ],
)
def test_a_squatter_who_comes_and_goes(uid: int, kind: str, content: bytes, size: int) -> None:
    """They are refused or not seen at all; peers meet only each other."""
    words = [str(uid), TAG, kind, content.hex(), str(size)]
    racer = subprocess.Popen(["/usr/bin/python3", "-I", "-S", "-c", SQUATTER, *words], stdout=subprocess.PIPE)
    assert racer.stdout is not None
    racer.stdout.readline()
    meeting: Callable[[], list[Child]] = lambda: [start(uid, 2, timeout=2.0) for _ in range(2)]  # noqa: E731
    try:
        for _ in range(40 if FULL else 10):
            peers = meeting()
            codes = [peer.end() for peer in peers]
            lines = [peer.line() for peer in peers]
            assert set(codes) <= {0, 32}, (codes, lines)
            namespaces = {line for line, code in zip(lines, codes) if code == 0}
            assert len(namespaces) <= 1, lines
            for peer in peers:
                os.close(peer.reports)
                os.close(peer.gate)
            assert racer.poll() is None
    finally:
        racer.kill()
        racer.wait()
        racer.stdout.close()
