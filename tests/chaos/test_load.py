# SPDX-License-Identifier: Apache-2.0
"""Many steps, also at the same time, and many tasks: each in its own image, none lost, nothing left, nothing that grows."""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from slurm_ch.sandbox.cluster import Cluster
from tests import leftovers
from tests.conftest import USER

from .conftest import FULL, Record
from .harness import HANG_SECONDS, Outcome, wait_for

OTHER_USER = "nobody"
SECONDS = 600

# The sizes, or a hundredth of them.
CONSECUTIVE = 1000 if FULL else 8
AT_ONCE = 50 if FULL else 8
NODES, TASKS_PER_NODE = (16, 32) if FULL else (3, 8)
TASKS_ON_ONE = 600 if FULL else 64
JOBS_OF_A_USER = 20 if FULL else 4
AGAIN = 100 if FULL else 2


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """As many nodes as the full form needs, each with room for all tasks."""
    with Cluster(nodes=NODES, cpus=64) as running:
        yield running


class Tally:
    """What went wrong, counted."""

    def __init__(self) -> None:
        self.wrong_image = 0
        self.failures: list[str] = []

    def add(self, status: int, out: str, err: str, expected: str, tasks: int) -> None:
        markers = Counter(re.findall(r"^(one|two)$", out, re.MULTILINE))
        self.wrong_image += sum(markers.values()) - markers[expected]
        # srun reports that a job had to queue.
        if status or Outcome(status, out, err, 0).lines or markers[expected] != tasks:
            self.failures.append(f"status {status}, {dict(markers)} of {tasks}, {err[:300]!r}")


def start(cluster: Cluster, words: Sequence[str], user: str = USER) -> subprocess.Popen[str]:
    env = {**cluster.environ(user), "PATH": "/usr/bin:/bin"}
    command = ["timeout", "-k", "5", str(SECONDS), "srun", "--overcommit", *words]
    return cluster.popen(command, user=user, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip


def finish(cluster: Cluster, record: Record, fault: str, tally: Tally, before: set[int], **figures: object) -> None:
    """Record a load and fail unless all is well and gone."""
    assert cluster._supervisor is not None
    top = cluster._supervisor.pid
    left: dict[int, str] = {}

    def is_gone() -> bool:
        # Look only once: at a job's end slurmd has children of its own, which come and go.
        left.clear()
        left.update((pid, line) for pid, line in leftovers.descendants(top).items() if pid not in before)
        return not left

    wait_for(is_gone, HANG_SECONDS)
    record(fault, wrong_image=tally.wrong_image, failures=len(tally.failures), left=len(left), **figures)
    assert not tally.failures, tally.failures[:10]
    assert not tally.wrong_image
    assert not left
    assert wait_for(lambda: set(cluster.node_states().values()) == {"idle"}, HANG_SECONDS), cluster.node_states()


@pytest.fixture
def before(cluster: Cluster) -> set[int]:
    """The daemons' processes."""
    assert cluster._supervisor is not None
    return set(leftovers.descendants(cluster._supervisor.pid))


def slurmd_use(before: set[int]) -> tuple[int, int]:
    """Return the resident KiB and the descriptors of the first slurmd."""
    for pid in sorted(before):
        if Path(f"/proc/{pid}/comm").read_text().strip() == "slurmd":
            resident = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
            assert resident
            return int(resident[1]), len(os.listdir(f"/proc/{pid}/fd"))
    raise AssertionError("no slurmd")


def slurmstepd_use(top: int) -> tuple[int, int]:
    """Return the same of a running step's slurmstepd."""
    (pid,) = [pid for pid, line in leftovers.descendants(top).items() if line.startswith("slurmstepd")]
    resident = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert resident
    return int(resident[1]), len(os.listdir(f"/proc/{pid}/fd"))


def test_consecutive_steps(
    cluster: Cluster, before: set[int], image_sqfs: Path, other_sqfs: Path, record: Record, world_tmp: Path
) -> None:
    """All steps are in one job, so that one slurmd's memory would grow; half of them in another image."""
    script = world_tmp / "steps.sh"
    script.write_text(
        f"for i in $(seq {CONSECUTIVE // 2}); do\n"
        f"  srun --overcommit -n2 --ch-image={image_sqfs} cat /marker || echo failed\n"
        f"  srun --overcommit -n2 --ch-image={other_sqfs} cat /marker || echo failed\n"
        "done\n"
    )
    script.chmod(0o755)
    warm = start(cluster, ["-w", "n1", f"--ch-image={image_sqfs}", "true"])
    warm.communicate(timeout=HANG_SECONDS)
    earlier = slurmd_use(before)
    env = {**cluster.environ(USER), "PATH": "/usr/bin:/bin"}
    done = cluster.run(
        ["salloc", "-Q", "-w", "n1", "-n2", "--overcommit", "bash", str(script)], user=USER, env=env, timeout=SECONDS
    )
    later = slurmd_use(before)
    tally = Tally()
    markers = done.stdout.split()
    tally.add(done.returncode, "\n".join(m for m in markers if m != "two"), done.stderr, "one", CONSECUTIVE)
    tally.add(done.returncode, "\n".join(m for m in markers if m != "one"), done.stderr, "two", CONSECUTIVE)
    in_order = ["one", "one", "two", "two"] * (CONSECUTIVE // 2)
    tally.wrong_image += sum(a != b for a, b in zip(markers, in_order))
    finish(
        cluster, record, "consecutive steps", tally, before, steps=CONSECUTIVE, slurmd_KiB=f"{earlier[0]} to {later[0]}",
        slurmd_descriptors=f"{earlier[1]} to {later[1]}",
    )  # fmt: skip
    assert later[1] <= earlier[1] + 2
    # malloc's own caches, not a thousand steps' worth.
    assert later[0] <= earlier[0] + 4096


def test_steps_at_once(cluster: Cluster, before: set[int], image_sqfs: Path, other_sqfs: Path, record: Record) -> None:
    tally = Tally()
    images = [(image_sqfs, "one"), (other_sqfs, "two")] * (AT_ONCE // 2)
    running = [
        (start(cluster, ["-w", "n1", "-n2", f"--ch-image={image}", "cat", "/marker"]), marker)
        for image, marker in images
    ]
    for step, marker in running:
        out, err = step.communicate(timeout=SECONDS)
        tally.add(step.returncode, out, err, marker, 2)
    finish(cluster, record, "steps at once on one node", tally, before, steps=AT_ONCE)


def test_all_nodes(cluster: Cluster, before: set[int], image_sqfs: Path, record: Record) -> None:
    tally, tasks = Tally(), NODES * TASKS_PER_NODE
    step = start(cluster, [f"-N{NODES}", f"-n{tasks}", f"--ch-image={image_sqfs}", "cat", "/marker"])
    out, err = step.communicate(timeout=SECONDS)
    tally.add(step.returncode, out, err, "one", tasks)
    finish(cluster, record, "all nodes", tally, before, nodes=NODES, tasks=tasks)


def test_tasks_on_one_node(cluster: Cluster, before: set[int], image_sqfs: Path, record: Record) -> None:
    """While the tasks run, slurmstepd has no descriptor of ours for each of them."""
    tally = Tally()
    used = []
    assert cluster._supervisor is not None
    for option in ([], [f"--ch-image={image_sqfs}"]):
        step = start(
            cluster,
            [
                "-N1",
                "-w",
                "n1",
                f"-n{TASKS_ON_ONE}",
                *option,
                "sh",
                "-c",
                "cat /marker 2>/dev/null || echo one; sleep 1",
            ],
        )
        assert step.stdout is not None
        lines = [step.stdout.readline() for _ in range(TASKS_ON_ONE)]
        used.append(slurmstepd_use(cluster._supervisor.pid))
        out, err = step.communicate(timeout=SECONDS)
        tally.add(step.returncode, "".join(lines) + out, err, "one", TASKS_ON_ONE)
    finish(
        cluster, record, "tasks on one node", tally, before, tasks=TASKS_ON_ONE, slurmstepd_KiB=f"{used[1][0]}, bare {used[0][0]}",
        slurmstepd_descriptors=f"{used[1][1]}, bare {used[0][1]}",
    )  # fmt: skip
    assert used[1][1] <= used[0][1]


def test_users_at_the_same_step_id(
    cluster: Cluster, before: set[int], image_sqfs: Path, other_sqfs: Path, record: Record
) -> None:
    """Every job's step is step 0, on the same node at the same time."""
    tally = Tally()
    jobs = []
    for _ in range(JOBS_OF_A_USER):
        for user, image, marker in ((USER, image_sqfs, "one"), (OTHER_USER, other_sqfs, "two")):
            words = ["-w", "n1", "-n2", f"--ch-image={image}", "sh", "-c", "cat /marker; echo step $SLURM_STEP_ID"]
            jobs.append((start(cluster, words, user), marker))
    for job, marker in jobs:
        out, err = job.communicate(timeout=SECONDS)
        assert set(re.findall(r"step (\d+)", out)) <= {"0"}
        tally.add(job.returncode, out, err, marker, 2)
    finish(cluster, record, "jobs of two users at one step id", tally, before, jobs=len(jobs))


def test_commands_that_end_at_once_strand_nobody(cluster: Cluster, before: set[int], image_sqfs: Path) -> None:
    for _ in range(AGAIN):
        step = start(cluster, ["-N1", "-n64", f"--ch-image={image_sqfs}", "true"])
        assert (step.communicate(timeout=SECONDS), step.returncode) == (("", ""), 0)
    assert cluster._supervisor is not None
    top = cluster._supervisor.pid
    assert wait_for(lambda: set(leftovers.descendants(top)) <= before, HANG_SECONDS)


def test_two_jobs_at_once_keep_to_their_images(cluster: Cluster, image_sqfs: Path, other_sqfs: Path) -> None:
    show = ["sh", "-c", "echo $SLURM_STEP_ID $(cat /marker)"]
    for _ in range(AGAIN):
        jobs = [start(cluster, ["-w", "n1", "-n4", f"--ch-image={image}", *show]) for image in (image_sqfs, other_sqfs)]
        for job, marker in zip(jobs, ("one", "two")):
            out, err = job.communicate(timeout=SECONDS)
            assert (job.returncode, out) == (0, f"0 {marker}\n" * 4), err
