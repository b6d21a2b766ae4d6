# SPDX-License-Identifier: Apache-2.0
"""The named join, `srun slurm-ch run --join`: a peer killed at each of its calls, first or last to come."""

from __future__ import annotations

import os
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import FULL, Record
from .harness import PEER, Call, Lab, Outcome, wait_for
from .slurm import Steps, with_parts

TASKS = 3
# The join's own timeout is 30 s: nobody may wait for that.
SOON = 15.0
STRAY = re.compile(r"/dev/shm/sem\.\w{6}")
SLURM_CH = Path(sys.executable).parent / "slurm-ch"


@pytest.fixture(scope="module")
def steps(tools: Path, image_sqfs: Path) -> Iterator[Steps]:
    """A cluster for steps without the plugin."""
    yield from with_parts(Lab(tools, image_sqfs))


def arrived() -> int:
    """Return how many peers of the join there is have registered."""
    for path in Path("/dev/shm").glob("slurm_ch-*"):
        try:
            return int(struct.unpack_from("=IIII", path.read_bytes())[3])
        except (FileNotFoundError, struct.error):
            continue
    return 0


def join(steps: Steps, call: Call | None, first: bool) -> Outcome:
    """Run a join whose rank 0 is killed at `call`, when some of the others are there too if it came `first`."""
    part = steps.lab.parts[PEER]
    gate = steps.lab.place / "gate"
    gate.unlink(missing_ok=True)
    os.mkfifo(gate)
    gate.chmod(0o666)
    # Held open: nobody waits for a writer, and each reader takes a byte.
    end = os.open(gate, os.O_RDWR)
    if call is None:
        part.record(0)
    else:
        part.act(call, "hold" if first else "kill", 0)

    def meanwhile(srun: subprocess.Popen[str]) -> None:
        holding = os.open(f"{part.fifo}.held", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if first and call:
            # Once it has registered it is the first, and waits for the others.
            wait_for(lambda: bool(select.select([holding], [], [], 0)[0]) or arrived() > 0 or srun.poll() is not None)
        os.write(end, b"x\n" * (TASKS - 1))
        if first and call and select.select([holding], [], [], SOON)[0]:
            wait_for(lambda: arrived() >= TASKS - 1, 2.0)
            os.kill(int(os.read(holding, 32)), signal.SIGKILL)
            part.go()
        os.close(holding)

    peer = shlex.join(
        [str(part.path), str(SLURM_CH), "run", "--join", str(steps.lab.image), "--", "/bin/cat", "/marker"]
    )
    script = f"[ $SLURM_PROCID = 0 ] || head -c2 {gate} > /dev/null; exec {peer}"
    try:
        return steps.run(tasks=TASKS, command=("sh", "-c", script), plugin=False, meanwhile=meanwhile, seconds=SOON)
    finally:
        os.close(end)


@pytest.mark.parametrize("first", [True, False])
def test_a_peer_killed_at_every_call(steps: Steps, record: Record, first: bool) -> None:
    done = join(steps, None, first)
    assert not done.problem(TASKS, slurm=True), done
    calls = [call for call in steps.lab.parts[PEER].calls() if call.process == 0]
    # Before, an interpreter starts: that is one phase.
    ours = calls[len(calls) // 2 :]
    points = [calls[0], *ours[:: max(1, len(ours) // (40 if FULL else 2))]]
    problems, seconds = [], []
    strays: list[str] = []
    for call in points:
        done = join(steps, call, first)
        seconds.append(done.seconds)
        # Killed within sem_open(3), a peer leaves the C library's own 32 bytes: no name tells whose they are.
        strays += [path for path in done.left if STRAY.fullmatch(path)]
        done.left = [path for path in done.left if not STRAY.fullmatch(path)]
        if problem := done.problem(TASKS, TASKS, TASKS, slurm=True):
            problems.append(f"killed at {call!r}: {problem}: {done!r}")
    record(
        f"named join, {'first' if first else 'any'} peer killed", cases=len(points), calls=len(calls), problems=len(problems),
        of_the_C_library=len(strays), slowest=round(max(seconds), 2),
    )  # fmt: skip
    assert not problems, "\n".join(problems[:10])
    done = join(steps, None, first)
    assert not done.problem(TASKS, slurm=True), done
