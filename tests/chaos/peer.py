# SPDX-License-Identifier: Apache-2.0
"""The campaign's faults against `ch-run --join`, where they apply: `python -m tests.chaos.peer RESULTS`.

Figures to compare with, no test: what fails here is not ours. Downloads and unpacks the newest ch-run as the
benchmark does.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.peer import Peer, fetch
from slurm_ch.sandbox.cluster import Cluster
from tests.small_images import make_image, squash

from .harness import PEER, Bystanders, Lab, Outcome, build_tools
from .slurm import Steps

TASKS = 3
# ch-run waits for 30 s; a case that takes this long is counted as hanging.
SECONDS = 12.0
POINTS = 8
# Longer than the join takes: a winner whose command has ended can't be joined.
STAY = "cat /marker; sleep 0.5"


class Campaign:
    """Runs of ch-run on a cluster, and the counts."""

    def __init__(self, steps: Steps, peer: Peer, other: Path) -> None:
        self.steps = steps
        self.part = steps.lab.parts[PEER]
        self.part.real, *self.arguments = peer.ch_run
        self.other = other
        self.rows: dict[str, dict[str, object]] = {}

    def command(self, script: str, image: Path | None = None) -> tuple[str, ...]:
        """Return the words of one task."""
        ours = [str(self.part.path), *self.arguments, "--join", str(image or self.steps.lab.image)]
        return (*ours, "--", "/bin/sh", "-c", script)

    def run(self, script: str = STAY, tasks: int = TASKS, **kw: object) -> Outcome:
        """Run one step, and remove what it leaves, because that would break the next one."""
        return self.steps.run(tasks=tasks, command=self.command(script), plugin=False, seconds=SECONDS, **kw)  # type: ignore[arg-type]

    def count(self, fault: str, ends: list[Outcome], tasks: int = TASKS) -> None:
        """Add a row of what went wrong."""
        self.rows[f"ch-run: {fault}"] = {
            "cases": len(ends),
            "failed": sum(end.status != 0 for end in ends),
            "hang": sum(end.status is None or end.seconds > SECONDS for end in ends),
            "left": sum(bool(end.left) for end in ends),
            "tasks_lost": sum(max(0, tasks - end.markers) for end in ends),
        }
        print(fault, self.rows[f"ch-run: {fault}"], flush=True)

    def killed_at_calls(self) -> None:
        """Kill rank 0 at calls spread over its set-up."""
        self.part.record(0)
        self.run()
        calls = [call for call in self.part.calls() if call.process == 0]
        ends = []
        for call in calls[:: max(1, len(calls) // POINTS)]:
            self.part.act(call, "kill", 0)
            ends.append(self.run())
        self.part.leave_alone()
        self.count("a peer killed at a call", ends)

    def server_killed(self) -> None:
        """Kill the process that serves the image while the tasks run."""

        def meanwhile(srun: subprocess.Popen[str]) -> None:
            assert srun.stdout is not None
            srun.stdout.readline()
            for pid in set(Bystanders(self.steps.lab.uid).processes):
                with open(f"/proc/{pid}/maps") as file:
                    if "libsquashfuse" in file.read():
                        os.kill(pid, signal.SIGKILL)

        self.count("server killed", [self.run("echo up; sleep 1; cat /marker", meanwhile=meanwhile)])

    def ends_at_once(self) -> None:
        """Run a command that is shorter than the join."""
        self.count("command that ends at once, 64 tasks", [self.run("cat /marker", tasks=64)], 64)

    def two_jobs(self) -> None:
        """Run the first steps of two jobs at the same time, each with its own image."""
        wrong = failed = 0
        bystanders = Bystanders(self.steps.lab.uid)
        rounds = 10
        for _ in range(rounds):
            images = ((self.steps.lab.image, "one"), (self.other, "two"))
            jobs = [
                (self.steps.start(["timeout", "15", "srun", "--overcommit", "-n4", *self.command(STAY, image)]), marker)
                for image, marker in images
            ]
            for job, marker in jobs:
                out, _ = job.communicate()
                words = re.findall(r"^(one|two)$", out, re.MULTILINE)
                wrong += sum(word != marker for word in words)
                failed += job.returncode != 0
        left = bystanders.wait_until_alone()
        self.rows["ch-run: two jobs at one step id"] = {
            "cases": rounds, "wrong_image": wrong, "failed": failed, "left": len(left),
        }  # fmt: skip
        print("two jobs", self.rows["ch-run: two jobs at one step id"], flush=True)


def campaign(place: Path) -> Iterator[Campaign]:
    """Make images, a cluster and the peer below `place`."""
    place.chmod(0o755)
    image = squash(make_image(place / "image", "one"), place / "image.sqfs")
    other = squash(make_image(place / "other", "two"), place / "other.sqfs")
    peer = fetch(place / "peer")
    with Cluster(nodes=1, cpus=64, plugstack_lines=[]) as cluster:
        yield Campaign(Steps(cluster, Lab(build_tools(place / "tools"), image)), peer, other)


def main(results: Path) -> None:
    """Run all of it, and add the rows to the file of results."""
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        for one in campaign(Path(place)):
            print("ch-run:", shlex.join(one.arguments), flush=True)
            one.ends_at_once()
            one.killed_at_calls()
            one.server_killed()
            one.two_jobs()
            before = json.loads(results.read_text()) if results.exists() else {}
            results.write_text(json.dumps({**before, **one.rows}, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
