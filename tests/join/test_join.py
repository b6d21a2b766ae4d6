# SPDX-License-Identifier: Apache-2.0
"""The named join [J2, J4-J6], with real processes that are really killed."""

from __future__ import annotations

import ctypes
import os
import pwd
import select
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import posix_ipc
import pytest

from slurm_ch import linux
from slurm_ch.errors import ChError, JoinError, UsageError
from slurm_ch.standalone import meeting, peers

TAG = f"test-{os.getpid()}"

# Whoever waited for the join's own timeout (60 s in all of these) fails here.
WATCHDOG_SECONDS = 20.0
JOIN_SECONDS = 60.0


class Child:
    """A forked peer: reports lines through a pipe, can be held at a point and killed."""

    def __init__(self, uid: int, body: Callable[[Child], None]) -> None:
        self.reports, report_end = os.pipe()
        gate_end, self.gate = os.pipe()
        self._text = b""
        self.pid = os.fork()
        if self.pid:
            os.close(report_end)
            os.close(gate_end)
            return
        code = 99
        try:
            os.close(self.reports)
            os.close(self.gate)
            self._report_end, self._gate_end = report_end, gate_end
            os.setgid(uid)
            os.setuid(uid)
            # As after an exec: else /proc/self belongs to root.
            ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
            body(self)
            code = 0
        except ChError as error:
            self.say(f"error {'silent ' if getattr(error, 'silent', False) else ''}{error}")
            code = error.code
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    # In the child

    def say(self, line: str) -> None:
        os.write(self._report_end, line.encode() + b"\n")

    def hold(self, where: str) -> None:
        """Report the point reached, and go on when the parent allows it."""
        self.say(f"at {where}")
        os.read(self._gate_end, 1)

    # In the parent

    def line(self) -> str:
        """Return the next line that the child reports."""
        deadline = time.monotonic() + WATCHDOG_SECONDS
        while b"\n" not in self._text:
            ready, _, _ = select.select([self.reports], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no word from {self.pid}"
            more = os.read(self.reports, 4096)
            if not more:
                return ""
            self._text += more
        line, _, self._text = self._text.partition(b"\n")
        return line.decode()

    def go(self) -> None:
        os.write(self.gate, b"x")

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def end(self) -> int:
        """Return the exit status, within the watchdog's time."""
        pidfd = os.pidfd_open(self.pid)
        ready, _, _ = select.select([pidfd], [], [], WATCHDOG_SECONDS)
        os.close(pidfd)
        if not ready:
            self.kill()
            raise AssertionError(f"peer {self.pid} hangs")
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def contain() -> None:
    """Enter new namespaces as an ordinary user: the test's container."""
    uid, gid = os.getuid(), os.getgid()
    linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNS)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1\n")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1\n")


def take_part(child: Child, count: int, *, hold: str = "", timeout: float = JOIN_SECONDS, tag: str = TAG) -> None:
    """Go through a join, held at the point `hold`, and report the namespaces."""

    def at(where: str) -> None:
        if where == hold:
            child.hold(where)

    peer = peers.Peer(tag, count, timeout=timeout, name=f"task {child.pid or os.getpid()}")
    winner = peer.arrive()
    at("arrived")
    if winner:
        contain()
        at("contained")
        peer.publish()
        at("published")
    else:
        user_fd, mount_fd = peer.wait_for_winner()
        at("opened")
        linux.setns(user_fd)
        linux.setns(mount_fd)
        at("entered")
    peer.done()
    child.say(f"{os.readlink('/proc/self/ns/user')} {os.readlink('/proc/self/ns/mnt')}")


@pytest.fixture
def uid(user: str) -> int:
    return pwd.getpwnam(user).pw_uid


@pytest.fixture(autouse=True)
def nothing_in_dev_shm() -> Iterator[None]:
    yield
    left = [name for name in os.listdir("/dev/shm") if TAG in name]
    for name in left:
        os.unlink(f"/dev/shm/{name}")
    assert not left


def start(uid: int, count: int, **kw: object) -> Child:
    return Child(uid, lambda child: take_part(child, count, **kw))  # type: ignore[arg-type]


@pytest.mark.row("J4")
def test_all_join_though_every_command_ends_at_once(uid: int) -> None:
    for _ in range(20):
        peers = [start(uid, 32) for _ in range(32)]
        assert [peer.end() for peer in peers] == [0] * 32
        namespaces = {peer.line() for peer in peers}
        assert len(namespaces) == 1
        assert os.readlink("/proc/self/ns/mnt") not in namespaces.pop()
        for peer in peers:
            os.close(peer.reports)
            os.close(peer.gate)


def test_alone(uid: int) -> None:
    assert start(uid, 1).end() == 0


@pytest.mark.parametrize("point", ["arrived", "contained"])
@pytest.mark.row("J5")
def test_winner_killed_before_it_publishes(uid: int, point: str) -> None:
    winner = start(uid, 4, hold=point)
    assert winner.line() == f"at {point}"
    losers = [start(uid, 4) for _ in range(2)]
    # One arrives before the death, for sure; the other whenever it may.
    late = start(uid, 4, hold="arrived")
    assert late.line() == "at arrived"
    winner.kill()
    late.go()
    everybody = [*losers, late]
    assert [peer.end() for peer in everybody] == [32] * 3
    lines = [peer.line() for peer in everybody]
    assert sum("silent" not in line for line in lines) == 1
    assert any("died" in line for line in lines)


def test_winner_killed_after_it_published(uid: int) -> None:
    winner = start(uid, 3, hold="published")
    assert winner.line() == "at published"
    loser = start(uid, 3, hold="arrived")
    assert loser.line() == "at arrived"
    loser.go()
    winner.kill()
    late = start(uid, 3)
    assert [loser.end(), late.end()] == [32, 32]


@pytest.mark.parametrize("point", ["arrived", "opened", "entered"])
def test_loser_killed(uid: int, point: str) -> None:
    winner = start(uid, 3, hold="arrived")
    assert winner.line() == "at arrived"
    winner.go()
    loser = start(uid, 3, hold=point)
    other = start(uid, 3)
    assert loser.line() == f"at {point}"
    loser.kill()
    assert [winner.end(), other.end()] == [32, 32]
    assert "died" in winner.line() + other.line()


@pytest.mark.row("J5")
def test_what_the_dead_left_is_taken_over(uid: int) -> None:
    for point in ("arrived", "contained", "published"):
        dead = start(uid, 2, hold=point)
        assert dead.line() == f"at {point}"
        dead.kill()
        assert any(TAG in name for name in os.listdir("/dev/shm"))
        peers = [start(uid, 2) for _ in range(2)]
        assert [peer.end() for peer in peers] == [0, 0]
        assert len({peer.line() for peer in peers}) == 1


def test_leftovers_of_other_joins_are_swept(uid: int, mocker: object) -> None:
    dead = start(uid, 2, hold="arrived", tag=f"{TAG}.old")
    assert dead.line() == "at arrived"
    living = start(uid, 2, hold="arrived", tag=f"{TAG}.living")
    assert living.line() == "at arrived"
    dead.kill()

    def with_no_newborns(child: Child) -> None:
        meeting._NEWBORN_SECONDS = 0.0
        take_part(child, 1)

    assert Child(uid, with_no_newborns).end() == 0
    left = {name for name in os.listdir("/dev/shm") if TAG in name}
    assert left == {f"slurm_ch-{uid}-{TAG}.living", f"sem.slurm_ch-{uid}-{TAG}.living"}
    living.go()
    other = start(uid, 2, tag=f"{TAG}.living")
    assert [living.end(), other.end()] == [0, 0]


def test_winner_fails(uid: int) -> None:
    def fail(child: Child) -> None:
        peer = peers.Peer(TAG, 2, timeout=JOIN_SECONDS)
        assert peer.arrive()
        child.hold("arrived")
        peer.fail(31)
        raise JoinError("as told")

    winner = Child(uid, fail)
    assert winner.line() == "at arrived"
    loser = start(uid, 2, hold="arrived")
    assert loser.line() == "at arrived"
    loser.go()
    winner.go()
    assert winner.end() == 32
    # The loser ends with the winner's code, and lets the winner do the talking.
    assert loser.end() == 31
    assert loser.line().startswith("error silent")


@pytest.mark.row("J2")
def test_timeout_says_who_is_missing(uid: int) -> None:
    peer = start(uid, 3, timeout=0.3)
    assert peer.end() == 32
    line = peer.line()
    assert "waited 0.3 s" in line
    assert "1 of 3 peers arrived (task " in line
    assert "2 never arrived" in line


def test_counts_that_contradict(uid: int) -> None:
    first = start(uid, 2, hold="arrived")
    assert first.line() == "at arrived"
    other = start(uid, 3)
    assert other.end() == 64
    assert "--join-ct=3: other peers of" in other.line()
    first.go()
    assert start(uid, 2).end() == 0
    assert first.end() == 0


def test_one_too_many(uid: int) -> None:
    peers = [start(uid, 2, hold="arrived") for _ in range(2)]
    for peer in peers:
        assert peer.line() == "at arrived"
    third = start(uid, 2)
    assert third.end() == 32
    assert "more than 2 peers" in third.line()
    for peer in peers:
        peer.go()
    assert [peer.end() for peer in peers] == [0, 0]


@pytest.mark.parametrize("kind", ["", "sem."])
@pytest.mark.parametrize("mode", [0o600, 0o666])
@pytest.mark.row("J6")
def test_squatting_is_an_error_that_says_so(uid: int, kind: str, mode: int) -> None:
    path = f"/dev/shm/{kind}slurm_ch-{uid}-{TAG}"
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    os.fchmod(fd, mode)
    os.fchown(fd, 65534, 65534)
    os.write(fd, b"\0" * 4096)
    os.close(fd)
    try:
        peer = start(uid, 1)
        assert peer.end() == 32
        assert "belongs to uid 65534; refusing to use it" in peer.line()
        assert Path(path).exists()
    finally:
        os.unlink(path)
        for name in os.listdir("/dev/shm"):
            if TAG in name:
                os.unlink(f"/dev/shm/{name}")


def test_a_semaphore_made_by_halves_is_completed(uid: int) -> None:
    """sem_open links the semaphore to its name before it unlinks the temporary name: some die between the two."""
    path, first = Path(f"/dev/shm/sem.slurm_ch-{uid}-{TAG}"), Path("/dev/shm/sem.Xa1b2C")
    start(uid, 1).end()
    posix_ipc.Semaphore(f"/slurm_ch-{uid}-{TAG}", posix_ipc.O_CREX, mode=0o600, initial_value=0).close()
    os.chown(path, uid, -1)
    os.link(path, first)
    try:
        assert start(uid, 1).end() == 0
        assert not first.exists()
    finally:
        first.unlink(missing_ok=True)


def test_an_object_open_to_others_is_refused(uid: int) -> None:
    path = f"/dev/shm/slurm_ch-{uid}-{TAG}"
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    os.fchmod(fd, 0o644)
    os.fchown(fd, uid, uid)
    os.close(fd)
    try:
        peer = start(uid, 1)
        assert peer.end() == 32
        assert "is open to others; refusing to use it" in peer.line()
    finally:
        for name in os.listdir("/dev/shm"):
            if TAG in name:
                os.unlink(f"/dev/shm/{name}")


@pytest.mark.row("J6")
def test_objects_are_private(uid: int) -> None:
    peer = start(uid, 2, hold="arrived")
    assert peer.line() == "at arrived"
    for kind in ("", "sem."):
        status = os.stat(f"/dev/shm/{kind}slurm_ch-{uid}-{TAG}")
        assert (status.st_uid, status.st_mode & 0o777) == (uid, 0o600)
    peer.go()
    assert start(uid, 2).end() == 0
    assert peer.end() == 0


@pytest.mark.parametrize("tag", ["", "a/b", "x" * 201, "ä", "a b"])
def test_tag_is_checked(tag: str) -> None:
    with pytest.raises(UsageError, match="--join-tag="):
        peers.Peer(tag, 1)


@pytest.mark.parametrize("count", [0, -1, 1 << 20])
def test_count_is_checked(count: int) -> None:
    with pytest.raises(UsageError, match="--join-ct="):
        peers.Peer(TAG, count)
