# SPDX-License-Identifier: Apache-2.0
"""Steps of a real Slurm whose parts are steppers, and what must hold after a step."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from slurm_ch import paths
from slurm_ch.sandbox.cluster import Cluster
from tests import leftovers

from .harness import HANG_SECONDS, USER, Bystanders, Lab, Outcome, wait, wait_for

# Slurm may take its time to see that a slurmstepd is gone, or that nobody answers.
SLURM_SECONDS = 60.0
MARKER = ("cat", "/marker")


class Steps:
    """Steps on a cluster of their own."""

    def __init__(self, cluster: Cluster, lab: Lab) -> None:
        assert cluster._supervisor is not None
        self.cluster = cluster
        self.lab = lab
        self.top = cluster._supervisor.pid
        self.daemons = set(leftovers.descendants(self.top))
        self.env = {**cluster.environ(USER), "PATH": "/usr/bin:/bin"}

    def start(self, words: list[str]) -> subprocess.Popen[str]:
        """Start a command as the user; `outcome` reads its output."""
        return self.cluster.popen(
            words, user=USER, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, errors="replace", start_new_session=True,
        )  # fmt: skip

    def run(
        self,
        *options: str,
        tasks: int = 2,
        command: tuple[str, ...] = MARKER,
        meanwhile: Callable[[subprocess.Popen[str]], None] | None = None,
        image: Path | str | None = None,
        seconds: float = SLURM_SECONDS,
        plugin: bool = True,
    ) -> Outcome:
        """Run one step on node n1; afterwards only the daemons may be there."""
        bystanders = Bystanders(self.lab.uid)
        words = ["srun", "-w", "n1", "--overcommit", f"-n{tasks}", *options]
        if plugin:
            words.append(f"--ch-image={image or self.lab.image}")
        started = time.monotonic()
        srun = self.start([*words, *command])
        try:
            if meanwhile:
                meanwhile(srun)
            status = wait(srun, seconds)
            elapsed = time.monotonic() - started
        finally:
            if srun.poll() is None:
                os.killpg(srun.pid, signal.SIGKILL)
        out, err = srun.communicate()
        outcome = Outcome(status, out, err, elapsed)
        outcome.left = self.wait_until_alone(bystanders)
        _end_group(srun.pid)
        return outcome

    def alone(self) -> bool:
        """Whether only the daemons are there."""
        return not self._more()

    def wait_until_alone(self, bystanders: Bystanders) -> list[str]:
        """Wait a while; return the processes other than the daemons and `bystanders`, and end them."""
        # Once alone is alone: what begins after that is Slurm's own, when it comes to the end of the job.
        if wait_for(lambda: not self._more() and not bystanders.left()):
            return []
        left = [f"process {pid}: {line}" for pid, line in self._more().items()] + bystanders.left()
        if left:
            for pid in self._more():
                os.kill(pid, signal.SIGKILL)
            bystanders.wait_until_alone()
        return left

    def _more(self) -> dict[int, str]:
        below = leftovers.descendants(self.top)
        return {pid: line for pid, line in below.items() if pid not in self.daemons}

    def sound(self) -> str:
        """Return what is wrong with the cluster, or "": nodes are up, and a plain step and one of ours work."""
        states: dict[str, str] = {}

        def idle() -> bool:
            states.update(self.cluster.node_states())
            return set(states.values()) == {"idle"}

        # Slurm asks a node for what became of a job again after a while.
        if not wait_for(idle, SLURM_SECONDS):
            return f"nodes: {states}"
        self.lab.leave_alone()
        done = self.run(seconds=HANG_SECONDS)
        return done.problem(2) and f"the next step: {done!r}"

    # ---- Who can be struck ----

    def stepd(self) -> list[int]:
        """Return the slurmstepds of steps; the end of a job has one, too."""
        return [
            pid for pid, line in self._more().items() if leftovers.name(pid) == "slurmstepd" and " spank " not in line
        ]

    def tasks(self) -> list[int]:
        """Return the tasks of the step, in the order of their start."""
        steps, up = set(self.stepd()), leftovers.parents()
        return sorted(pid for pid in self._more() if up.get(pid) in steps and pid not in steps)

    def server(self) -> list[int]:
        """Return the FUSE servers."""
        return [pid for pid, line in self._more().items() if re.search(r"squashfuse\S* -[fb] ", line)]


def _end_group(leader: int) -> None:
    """End the child that a killed srun has left: it reports to slurmctld, and without one it would try for ever."""

    def gone() -> bool:
        try:
            os.killpg(leader, 0)
        except ProcessLookupError:
            return True
        return False

    if not wait_for(gone):
        with suppress(ProcessLookupError):
            os.killpg(leader, signal.SIGKILL)


def with_parts(lab: Lab, nodes: int = 2, **kw: str) -> Iterator[Steps]:
    """Start a cluster whose plugin has the lab's parts."""
    line = f"required {paths.PLUGIN} " + " ".join(argument for argument in lab.site() if "launcher=" not in argument)
    with Cluster(nodes=nodes, cpus=8, plugstack_lines=[line], **kw) as cluster:
        yield Steps(cluster, lab)
