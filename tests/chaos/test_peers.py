# SPDX-License-Identifier: Apache-2.0
"""Joins without the plugin, `srun slurm-ch run --join`: a peer killed at each of its calls, first or with the others.

Without Slurm, and each of the other processes: tests/join/test_deaths.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import SLURM_CH
from tests.strike import killed_at, numbered

from .conftest import FULL, Record
from .harness import Lab, Outcome
from .slurm import Steps, with_parts

TASKS = 3
# The join's own timeout is 30 s: nobody may wait for that.
SOON = 15.0


@pytest.fixture(scope="module")
def steps(tools: Path, image_sqfs: Path) -> Iterator[Steps]:
    """A cluster for steps without the plugin."""
    yield from with_parts(Lab(tools, image_sqfs))


def join(steps: Steps, wrap: list[str], first: bool) -> Outcome:
    """Run a join whose rank 0 is run by `wrap`, and ends before the others come if it is the `first`."""
    gate = steps.lab.place / "gate"
    gate.unlink(missing_ok=True)
    os.mkfifo(gate)
    gate.chmod(0o666)
    # Held open: nobody waits for a writer, and each reader takes a line.
    end = os.open(gate, os.O_RDWR)
    peer = f"{SLURM_CH} run --join {steps.lab.image} -- /bin/cat /marker"
    # A shell says of its own child that it was killed.
    strike = f"{{ {' '.join(wrap)} {peer}; }} 2> /dev/null"
    last = f"head -c2 {gate} > /dev/null; " if first else ""
    script = (
        f"[ $SLURM_PROCID = 0 ] || {{ {last}exec {peer}; }}; {strike}; code=$?; printf 'x\\nx\\n' > {gate}; exit $code"
    )
    try:
        return steps.run(tasks=TASKS, command=("sh", "-c", script), plugin=False, seconds=SOON)
    finally:
        os.close(end)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.row("D1")
def test_a_peer_killed_at_every_call(steps: Steps, record: Record, first: bool) -> None:
    log = steps.lab.place / "logs/peer"
    log.unlink(missing_ok=True)
    done = join(steps, ["strace", "-o", str(log)], first=False)
    assert not done.problem(TASKS, slurm=True), done
    calls = numbered(log.read_text())
    problems, seconds = [], []
    cases = calls[:: 1 if FULL else 20]
    for call in cases:
        done = join(steps, killed_at(*call), first)
        seconds.append(done.seconds)
        problem = done.problem(TASKS, TASKS, TASKS, slurm=True)
        if problem or done.markers < TASKS - 1:
            problems.append(f"killed at {call}: {problem or 'not all others are in'}: {done!r}")
    record(
        f"named join, {'first' if first else 'any'} peer killed", cases=len(cases), calls=len(calls), problems=len(problems),
        slowest=round(max(seconds), 2),
    )  # fmt: skip
    assert not problems, "\n".join(problems[:10])
