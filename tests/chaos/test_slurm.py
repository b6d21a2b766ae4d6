# SPDX-License-Identifier: Apache-2.0
"""On a real Slurm: whichever process dies, and when, the step ends, nothing stays, the node is up, the next step works."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest

from .conftest import FULL, Record
from .harness import HANG_SECONDS, Bystanders, Call, Lab, wait_for
from .slurm import Steps, with_parts
from .test_calls import KINDS, PARTS, RANK, SPARED

TASKS = 2


@pytest.fixture(scope="module")
def steps(tools: object, image_sqfs: object) -> Iterator[Steps]:
    """A cluster whose plugin starts the parts as steppers."""
    yield from with_parts(Lab(tools, image_sqfs))  # type: ignore[arg-type]


def recorded(steps: Steps, part: str) -> list[Call]:
    """Return the calls of a part in a step that nothing is done to."""
    steps.lab.leave_alone()
    steps.lab.parts[KINDS[part]].record(RANK.get(part, -1))
    done = steps.run(tasks=TASKS)
    assert not done.problem(TASKS), done
    return steps.lab.parts[KINDS[part]].calls()


@pytest.mark.parametrize("part", PARTS)
def test_killed_at_every_call(steps: Steps, part: str, record: Record) -> None:
    calls = recorded(steps, part)
    stride = {"launcher": 4, "ch-join": 1, "server": 3}[part] if FULL else max(1, len(calls) // 4)
    problems, seconds, hits = [], [], 0
    for call in calls[::stride]:
        steps.lab.leave_alone()
        steps.lab.parts[KINDS[part]].act(call, "kill", RANK.get(part, -1))
        done = steps.run(tasks=TASKS)
        hits += steps.lab.parts[KINDS[part]].hit() is not None
        if done.status:
            seconds.append(done.seconds)
        problem = done.problem(TASKS, SPARED.get(part, 0), TASKS if part == "server" else 1, slurm=True)
        if problem:
            problems.append(f"{part} killed at {call!r}: {problem}: {done!r}")
    record(
        f"srun, kill {part}", cases=len(calls[::stride]), hit=hits, failed=len(seconds), problems=len(problems),
        slowest=round(max(seconds), 2),
    )  # fmt: skip
    assert not problems, "\n".join(problems[:20])
    assert not steps.sound()


def kill(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def interrupt(steps: Steps, srun: subprocess.Popen[str]) -> None:
    srun.send_signal(signal.SIGINT)
    assert srun.stderr is not None
    # srun asks for a second one.
    srun.stderr.readline()
    srun.send_signal(signal.SIGINT)


EVENTS: dict[str, Callable[[Steps, subprocess.Popen[str]], object]] = {
    "task 0 killed": lambda steps, srun: kill(steps.tasks()[:1]),
    "task 1 killed": lambda steps, srun: kill(steps.tasks()[1:]),
    "server killed": lambda steps, srun: kill(steps.server()),
    "slurmstepd killed": lambda steps, srun: kill(steps.stepd()),
    "srun killed": lambda steps, srun: srun.kill(),
    "scancel": lambda steps, srun: steps.start(["scancel", "--user", "chuser"]).communicate(timeout=HANG_SECONDS),
    "interrupt": interrupt,
}


@pytest.mark.parametrize("part", ["launcher", "ch-join"])
@pytest.mark.parametrize("event", EVENTS)
def test_something_happens_while_a_part_is_at_a_call(steps: Steps, part: str, event: str, record: Record) -> None:
    calls = [call for call in recorded(steps, part) if call.process == 0]
    # An interpreter's start is one phase; our own work has many.
    half = len(calls) // 2
    points = [calls[half // 2], *calls[half :: max(1, half // 8)]] if FULL else [calls[-len(calls) // 5]]
    problems, seconds = [], []
    for call in points:
        steps.lab.leave_alone()
        stepper = steps.lab.parts[KINDS[part]]
        stepper.act(call, "hold", RANK.get(part, -1))

        def meanwhile(srun: subprocess.Popen[str]) -> None:
            held = stepper.wait_until_held()  # noqa: B023
            assert held, f"not held at {call!r}"  # noqa: B023
            assert wait_for(lambda: len(steps.tasks()) == TASKS or part == "ch-join")
            EVENTS[event](steps, srun)
            stepper.go()  # noqa: B023
            if event == "slurmstepd killed":
                # All of ours ends by itself. srun waits on, as it does for a step without a container.
                assert wait_for(steps.alone), steps.wait_until_alone(Bystanders(steps.lab.uid))
                srun.kill()

        done = steps.run(tasks=TASKS, meanwhile=meanwhile)
        seconds.append(done.seconds)
        problem = done.problem(TASKS, TASKS, TASKS, slurm=True)
        if problem and not (done.status == -signal.SIGKILL and not done.left and event.startswith("s")):
            problems.append(f"{event} with {part} at {call!r}: {problem}: {done!r}")
    record(f"srun, {event}, {part} held", cases=len(points), problems=len(problems), slowest=round(max(seconds), 2))
    assert not problems, "\n".join(problems)
    assert not steps.sound()


def test_kill_on_bad_exit(steps: Steps, record: Record) -> None:
    """A task that fails ends the step with another task that has not entered the container yet."""
    calls = recorded(steps, "ch-join")
    ends = []
    for call in calls[1 :: 1 if FULL else len(calls)]:
        steps.lab.leave_alone()
        stepper = steps.lab.parts[KINDS["ch-join"]]
        stepper.act(call, "hold", RANK["ch-join"])

        def meanwhile(srun: subprocess.Popen[str]) -> None:
            assert stepper.wait_until_held()  # noqa: B023
            assert srun.stderr is not None
            while "exit code 3" not in (line := srun.stderr.readline()):
                assert line
            stepper.go()  # noqa: B023

        ends.append(steps.run("--kill-on-bad-exit=1", tasks=TASKS, command=("sh", "-c", "exit 3"), meanwhile=meanwhile))
    bad = [repr(end) for end in ends if not end.status or end.left]
    record(
        "srun, --kill-on-bad-exit", cases=len(ends), problems=len(bad), slowest=round(max(e.seconds for e in ends), 2)
    )
    assert not bad
    assert not steps.sound()


if FULL:

    def test_time_limit(steps: Steps, record: Record) -> None:
        """Slurm's shortest time limit is a minute."""
        call = recorded(steps, "launcher")[-20]
        steps.lab.leave_alone()
        stepper = steps.lab.parts[KINDS["launcher"]]
        stepper.act(call, "hold")

        def meanwhile(srun: subprocess.Popen[str]) -> None:
            assert stepper.wait_until_held()
            assert srun.stderr is not None
            while "TIME LIMIT" not in (line := srun.stderr.readline()):
                assert line
            stepper.go()

        done = steps.run("--time=1", meanwhile=meanwhile, seconds=240)
        problem = done.problem(TASKS, slurm=True)
        record("srun, time limit", cases=1, problems=int(bool(problem)), slowest=round(done.seconds, 2))
        assert not problem, done
        assert not steps.sound()
