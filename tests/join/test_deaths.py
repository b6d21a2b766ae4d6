# SPDX-License-Identifier: Apache-2.0
"""A peer, the holder, its guard or the launcher dies at any point [J5]: what happens to the others."""

from __future__ import annotations

import os
import re
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.leftovers import descendants
from tests.strike import killed_at, numbered

from .conftest import Peer, Place, installed, wait_for

# `make chaos` strikes at each call.
FULL = os.environ.get("CHAOS") == "full"
NAMESPACE = ("readlink", "/proc/self/ns/mnt")
STAY = ("sh", "-c", "readlink /proc/self/ns/mnt; read x")


def calls_of_a_peer(place: Place, open_tmp: Path) -> list[tuple[str, int]]:
    """Return the system calls of the first peer until it executes the command: the name, and the number of that name."""
    log = open_tmp / "calls"
    log.touch()
    log.chmod(0o666)
    assert place.start(count=1, wrap=["strace", "-o", str(log)]).end()[0] == 0
    return numbered(log.read_text())


def together(peers: list[Peer], problems: list[str], where: str) -> None:
    """Note what is wrong with peers that must all be in one container."""
    ends = [peer.end() for peer in peers]
    if {(code, err) for code, _, err in ends} != {(0, "")} or len({out for _, out, _ in ends}) != 1:
        problems.append(f"{where}: {ends}")


@pytest.mark.parametrize("when", ["first", "among others", "last"])
@pytest.mark.row("J5", "D1", "D2", "D3")
def test_a_peer_killed_at_each_call(place: Place, open_tmp: Path, when: str) -> None:
    """The others are in one container, without a delay."""
    calls = calls_of_a_peer(place, open_tmp)
    assert len(calls) > 50
    problems: list[str] = []
    ended: list[int] = []
    tag = place.tag
    for number, call in enumerate(calls[:: 1 if FULL else 5]):
        place.tag = f"{tag}.{number}"
        kill = killed_at(*call)

        def start(tag: str = place.tag, kill: list[str] = kill) -> Peer:
            place.tag = tag
            return place.start("--join-timeout=2", count=3, wrap=kill, command=NAMESPACE)

        others = []
        if when == "last":
            others = [place.start("--join-timeout=2", count=3, command=NAMESPACE) for _ in range(2)]
            together(others, problems, f"before {call}")
        victim = start()
        if when == "first":
            victim.end()
        if when != "last":
            others = [place.start("--join-timeout=2", count=3, command=NAMESPACE) for _ in range(2)]
            together(others, problems, f"killed at {call}")
        ended.append(victim.end()[0])
    assert not problems, "\n".join(problems)
    # By its own signal: who came after all calls would prove nothing.
    assert ended.count(-9) > (0.8 if when == "first" else 0.5) * len(ended), ended


@pytest.mark.row("D8")
def test_the_holder_killed(place: Place) -> None:
    """Peers that come later are refused with a message; nobody makes a second container."""
    first = place.start("--join-timeout=1", count=3, command=STAY)
    assert first.line()
    processes = place.wait_for_holder()
    os.kill(processes["holder"], signal.SIGKILL)
    wait_for(lambda: "holder" not in place.holders(), lambda: "the holder lives")
    for _ in range(2):
        code, out, err = place.start("--join-timeout=1", count=3).end()
        assert (code, out) == (32, "")
        assert err == f"slurm-ch: error: join: {place.tag}: the container's holder was killed before this peer came\n"
    first.go()
    assert first.end()[0] == 0


@pytest.mark.row("D9")
def test_the_guard_killed(place: Place) -> None:
    first = place.start(count=2)
    assert first.end() == (0, "one\n", "")
    os.kill(place.wait_for_holder()["guard"], signal.SIGKILL)
    assert place.start(count=2).end() == (0, "one\n", "")


@pytest.mark.row("D10")
def test_holder_and_guard_killed(place: Place) -> None:
    """The one case in which a join splits: the next peer makes another container."""
    first = place.start(count=2, command=STAY)
    here = first.line()
    for pid in place.wait_for_holder().values():
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not place.is_bound(), lambda: "the name is still there")
    peers = [place.start(count=2, command=STAY) for _ in range(2)]
    assert {peer.line() for peer in peers} - {here}
    for peer in (first, *peers):
        peer.go()
        assert peer.end()[0] == 0


@pytest.mark.row("D11")
def test_the_holder_stopped(place: Place) -> None:
    first = place.start(count=2)
    assert first.end()[0] == 0
    holder = place.wait_for_holder()["holder"]
    os.kill(holder, signal.SIGSTOP)
    code, out, err = place.start("--join-timeout=1", count=2).end()
    os.kill(holder, signal.SIGCONT)
    assert (code, out) == (32, "")
    assert err == f"slurm-ch: error: join: {place.tag}: waited 1 s for an answer of pid {holder}\n"
    # It has come, and gone again; its place is free.
    assert place.start(count=2).end() == (0, "one\n", "")


@pytest.mark.row("D13")
def test_signals_for_the_tasks_are_not_the_holders(place: Place) -> None:
    """Signals as scancel --signal sends them, to all processes of the step."""
    assert place.start(count=2).end()[0] == 0
    for pid in place.wait_for_holder().values():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGALRM):
            os.kill(pid, number)
    assert place.start(count=2).end() == (0, "one\n", "")


@pytest.mark.row("D7")
def test_the_images_server_killed(place: Place, image_sqfs: Path) -> None:
    """As under the plugin: reads from the image fail, and nothing is left."""
    line = "readlink /proc/self/ns/mnt; read x; exec cat /marker"
    peers = [place.start(count=3, image=image_sqfs, command=("sh", "-c", line)) for _ in range(2)]
    assert len({peer.line() for peer in peers}) == 1
    (server,) = [pid for pid, words in descendants(1).items() if re.search(r"squashfuse\S* -[fb] ", words)]
    os.kill(server, signal.SIGKILL)
    for peer in peers:
        peer.go()
    late = place.start(count=3, image=image_sqfs)
    for code, out, err in [peer.end() for peer in (*peers, late)]:
        # The shell's own pages may be gone: then it dies of that.
        assert code in (126, 127, -signal.SIGBUS, -signal.SIGSEGV, 1, 2), (code, out, err)
        assert out == ""
        assert err.count("\n") <= 1


# ---- The launcher ----


@pytest.fixture
def held(place: Place, open_tmp: Path) -> Iterator[Place]:
    """A place whose launcher writes its pid, and waits until it may start."""
    wrapper, gate = open_tmp / "python", open_tmp / "gate"
    os.mkfifo(gate)
    gate.chmod(0o666)
    wrapper.write_text(f'#!/bin/sh\necho $$ >> {open_tmp}/pids\nread x < {gate}\nexec /usr/bin/python3 "$@"\n')
    wrapper.chmod(0o755)
    (open_tmp / "pids").touch()
    (open_tmp / "pids").chmod(0o666)
    place.program = installed(open_tmp, wrapper)
    place.scratch = open_tmp
    yield place


def launcher(place: Place) -> int:
    """Return the pid of the waiting launcher."""
    wait_for((place.scratch / "pids").read_text, lambda: "no launcher")
    return int((place.scratch / "pids").read_text().split()[-1])


def release(place: Place) -> None:
    with (place.scratch / "gate").open("w") as gate:
        gate.write("\n")


@pytest.mark.row("D4")
def test_the_launcher_killed(held: Place) -> None:
    """There is one message for all; a late peer only gets the exit status."""
    peers = [held.start(count=4) for _ in range(3)]
    os.kill(launcher(held), signal.SIGKILL)
    ends = [*(peer.end() for peer in peers), held.start(count=4).end()]
    assert [(code, out) for code, out, _ in ends] == [(33, "")] * 4
    said = [err for _, _, err in ends if err]
    assert len(said) == 1
    assert said[0].startswith("slurm-ch: error: the launcher died before the container was ready")


@pytest.mark.row("D6")
def test_the_launcher_hangs(held: Place) -> None:
    """Each peer waits until its timeout, and names the peer that makes the container; the launcher ends with the last peer."""
    peers = [held.start("--join-timeout=1", count=2, rank=rank) for rank in range(2)]
    pid = os.pidfd_open(launcher(held))
    ends = [peer.end() for peer in peers]
    for code, out, err in ends:
        assert (code, out) == (32, "")
        assert re.fullmatch(
            rf"slurm-ch: error: join: {held.tag}: waited 1 s for the container that task [01] \(pid \d+\) makes\n", err
        )
    assert select.select([pid], [], [], 5.0)[0]
    os.close(pid)


@pytest.mark.row("D8")
def test_the_holder_killed_while_peers_wait(held: Place) -> None:
    """Peers that have the socket join."""
    peers = [held.start("--join-timeout=5", count=4, command=NAMESPACE) for _ in range(3)]
    launcher(held)
    # All three have it when they wait for nothing else.
    wait_until_served(peers)
    os.kill(held.wait_for_holder()["holder"], signal.SIGKILL)
    release(held)
    ends = [peer.end() for peer in peers]
    assert {(code, err) for code, _, err in ends} == {(0, "")}
    assert len({out for _, out, _ in ends}) == 1
    assert held.start("--join-timeout=1", count=4).end()[0] == 32
    for pid in held.holders().values():
        os.kill(pid, signal.SIGKILL)


def wait_until_served(peers: list[Peer]) -> None:
    """Wait until all have the same end of the launcher's socket, and no other."""
    wait_for(
        lambda: len({tuple(sockets(peer.pid)) for peer in peers}) == 1 and len(sockets(peers[0].pid)) == 1,
        lambda: "not all have the same socket",
    )


def sockets(pid: int) -> list[str]:
    try:
        links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    except FileNotFoundError:
        return []
    return [link for link in links if link.startswith("socket:")]


@pytest.mark.row("D2")
def test_all_peers_killed_while_the_launcher_works(held: Place) -> None:
    """The launcher ends, because nobody waits any more; the next peers start another."""
    peers = [held.start(count=2) for _ in range(2)]
    pid = os.pidfd_open(launcher(held))
    wait_until_served(peers)
    for peer in peers:
        os.kill(peer.pid, signal.SIGKILL)
    assert select.select([pid], [], [], 5.0)[0]
    os.close(pid)


@pytest.mark.row("D4")
def test_a_single_command_whose_launcher_is_killed(held: Place) -> None:
    peer = held.execute([held.program, "run", str(held.image), "--", "true"], env={"PATH": "/usr/bin:/bin"})
    os.kill(launcher(held), signal.SIGKILL)
    code, out, err = peer.end()
    assert (code, out, err.count("\n")) == (33, "", 1)


def test_a_single_command_that_is_killed(held: Place) -> None:
    """Nothing is left of the join."""
    peer = held.execute([held.program, "run", str(held.image), "--", "true"], env={"PATH": "/usr/bin:/bin"})
    pid = os.pidfd_open(launcher(held))
    peer.kill(signal.SIGINT)
    assert select.select([pid], [], [], 5.0)[0]
    os.close(pid)
