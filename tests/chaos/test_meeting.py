# SPDX-License-Identifier: Apache-2.0
"""Joins without the plugin: holder, guard and launcher killed at each of their calls [J5]; failing calls.

The peers themselves: test_peers.py, and tests/join/test_deaths.py.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.command import SLURM_CH
from tests.join.conftest import Place, installed, meeting, wait_for

from .conftest import FULL, Record
from .harness import CLEAR, PEER, USER, Call, Lab, Part
from .test_calls import PLAUSIBLE

PEERS = 3
# The processes that an elected peer starts, in their order: one that starts the guard and ends; the two that stay.
STARTER, GUARD, HOLDER = 1, 2, 3
# Prints where it is, and stays until it reads a line.
STAY = ("sh", "-c", "echo $(readlink /proc/self/ns/mnt) $(cat /marker); read x")


class Join:
    """How a join ended: its peers' statuses, their containers, their messages."""

    def __init__(self, place: Place, elected: str, others: str) -> None:
        """Run one: the elected peer's command, and the others' (of which one may be who begins)."""
        started = time.monotonic()
        place.program = elected
        peers = [place.start(count=PEERS, command=STAY, rank=0)]
        wait_for(lambda: place.is_bound() or not peers[0].runs(), lambda: "nobody is elected")
        place.program = others
        peers += [place.start(count=PEERS, command=STAY, rank=rank) for rank in range(1, PEERS)]
        self.where = [peer.line() for peer in peers]
        for peer, where in zip(peers, self.where):
            if where:
                peer.go()
        ends = [peer.end() for peer in peers]
        self.seconds = time.monotonic() - started
        self.codes = [code for code, _, _ in ends]
        self.said = "".join(err for _, _, err in ends).splitlines()
        wait_for(lambda: is_clean(place), lambda: f"left behind: {place.left()}")

    def problem(self, expected: tuple[set[int], ...], lines: int) -> str:
        """Return what is wrong, or ""; `expected` are the sets of statuses that may be."""
        inside = {where for where, code in zip(self.where, self.codes) if code == 0}
        if len(inside) > 1 or not all(where.endswith(" one") for where in inside):
            return "not all in one container of the image"
        if set(self.codes) not in expected:
            return "statuses"
        failed = sum(code != 0 for code in self.codes)
        if len(self.said) != (min(failed, lines) if failed else 0):
            return "words"
        return "" if all(CLEAR.match(line) for line in self.said) else "unclear"

    def __repr__(self) -> str:
        return f"{self.codes} in {self.where} after {self.seconds:.2f} s: {self.said}"


def is_clean(place: Place) -> bool:
    """Whether nothing is left, after ending the guard of a killed holder, which would still refuse peers."""
    processes = place.holders()
    if set(processes) == {"guard"}:
        with suppress(ProcessLookupError):
            os.kill(processes["guard"], signal.SIGKILL)
    return not place.left()


@pytest.fixture
def place(user: str, image_sqfs: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    with meeting(USER, image_sqfs, f"struck-{os.getpid()}") as one:
        yield one


def campaign(
    place: Place,
    part: Part,
    programs: tuple[str, str],
    cases: list[tuple[Call, str]],
    expected: tuple[set[int], ...],
    lines: int,
) -> dict[str, Any]:
    """Cause each fault at its call; return the figures, with what went wrong."""
    problems, seconds, hits, failed = [], [], 0, 0
    for call, action in cases:
        part.act(call, action)
        done = Join(place, *programs)
        hits += part.hit() is not None
        failed += any(done.codes)
        seconds.append(done.seconds)
        if problem := done.problem(expected, lines):
            problems.append(f"{action} at {call!r}: {problem}: {done!r}")
    assert not problems, "\n".join(problems[:20])
    return {"cases": len(cases), "hit": hits, "failed": failed, "problems": 0, "slowest": round(max(seconds), 2)}


def killed(calls: list[Call], short: int) -> list[tuple[Call, str]]:
    """Return the cases of a process that is killed at each of its calls, or so many in the short form."""
    return [(call, "kill") for call in calls[:: 1 if FULL else max(1, len(calls) // short)]]


def recorded(lab: Lab, place: Place, process: int) -> tuple[Part, tuple[str, str], list[Call]]:
    """Return the part that the elected peer is, its command and the others', and the calls of one of its processes."""
    part = lab.parts[PEER]
    part.real = SLURM_CH
    elected = lab.place / "slurm-ch"
    elected.symlink_to(part.path)
    programs = (str(elected), SLURM_CH)
    part.record()
    done = Join(place, *programs)
    assert not done.problem(({0},), 0), done
    calls = [call for call in part.calls() if call.process == process]
    assert calls
    return part, programs, calls


@pytest.mark.parametrize(("who", "process"), [("starter", STARTER), ("guard", GUARD), ("holder", HOLDER)])
@pytest.mark.row("J5", "D8", "D9")
def test_who_keeps_the_meeting_place_killed_at_every_call(
    lab: Lab, place: Place, record: Record, who: str, process: int
) -> None:
    """Without the holder, only peers that have its answer join; the end of another process harms no peer."""
    part, programs, calls = recorded(lab, place, process)
    expected = ({0}, {32}, {0, 32}) if process == HOLDER else ({0},)
    figures = campaign(place, part, programs, killed(calls, 12), expected, PEERS)
    # How often a holder polls is another matter each time; its last calls may never come.
    assert figures["hit"] > 0.6 * figures["cases"]
    record(f"join, {who} killed", calls=len(calls), **figures)


@pytest.mark.row("D8")
def test_every_call_of_the_holder_failing(lab: Lab, place: Place, record: Record) -> None:
    """The process tries again or fails; no peer is in a second container."""
    part, programs, calls = recorded(lab, place, HOLDER)
    # The kernel only reports EPIPE if the other end is dead, and close never fails.
    cases = [
        (call, f"errno {error}")
        for call in calls
        for error in PLAUSIBLE.get(call.name, PLAUSIBLE[""])
        if error != errno.EPIPE and call.name != "close"
    ]
    struck = cases[:: 1 if FULL else max(1, len(cases) // 24)]
    figures = campaign(place, part, programs, struck, ({0}, {31}, {32}, {0, 31}, {0, 32}), PEERS)
    assert figures["hit"] > 0.6 * figures["cases"]
    record("join, errno holder", calls=len(calls), **figures)


@pytest.mark.row("J5", "D4")
def test_the_launcher_killed_at_every_call(lab: Lab, place: Place, record: Record, open_tmp: Path) -> None:
    """The ticket is sent or it isn't: all peers are in, or all fail with one message."""
    part = lab.parts["python"]
    programs = (installed(open_tmp, part.path),) * 2
    part.record()
    done = Join(place, *programs)
    assert not done.problem(({0},), 0), done
    calls = part.calls()
    assert len(calls) > 500
    figures = campaign(place, part, programs, killed(calls, 16), ({0}, {33}, {31}), 1)
    assert figures["hit"] > 0.9 * figures["cases"]
    record("join, launcher killed", calls=len(calls), **figures)
