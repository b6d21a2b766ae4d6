# SPDX-License-Identifier: Apache-2.0
"""--ch-broadcast on two nodes, each with a disk of its own."""

from __future__ import annotations

import os
import pwd
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from slurm_ch import agreement, paths

from .conftest import TIMEOUT
from .own_disks import OwnDisks

NAME = os.path.basename(agreement.BROADCAST_FILE)
SRUN = "srun --quiet --ch-image=$IMG --ch-broadcast"
# On the nodes, not in a container: which copies there are.
COPIES = "srun --quiet -N2 -n2 stat -c 'copy %d %s' $DISK/*.sqfs"


class Two:
    """A cluster of two nodes, and its user, who is at home in a directory that all nodes see."""

    def __init__(self, cluster: OwnDisks, user: str, home: Path, image: Path) -> None:
        self.cluster = cluster
        self.user = user
        self.home = home
        self.env = {**cluster.environ(user), "IMG": str(image), "PATH": "/usr/bin:/bin", "DISK": str(cluster.disk)}
        self.env["SLURM_CH_CACHE"] = str(home / "cache")

    def sh(self, line: str) -> tuple[int, str, str]:
        done = self.cluster.run(["bash", "-c", line], user=self.user, timeout=TIMEOUT, env=self.env, cwd=self.home)
        return done.returncode, done.stdout, done.stderr

    def batch(self, script: str) -> str:
        """Run a script on both nodes, and return the output of it and its steps."""
        (self.home / "job.sh").write_text(f"#!/bin/bash\nset -e\n{script}echo finished\n")
        assert self.sh("sbatch -N2 -o said job.sh")[0] == 0
        until(lambda: self.sh("squeue -h")[1] == "")
        said = (self.home / "said").read_text()
        assert said.endswith("finished\n"), said
        return said


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def cluster_of_two(world_tmp: Path, user: str, image: Path, name: str, **sizes: str) -> Iterator[Two]:
    home = world_tmp / name
    disk = home / "disk"
    disk.mkdir(parents=True)
    os.chown(home, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
    with OwnDisks(disk, sizes, plugstack_lines=[f"required {paths.PLUGIN} broadcast={disk}"]) as cluster:
        yield Two(cluster, user, home, image)


@pytest.fixture(scope="module")
def running(world_tmp: Path, user: str, image_sqfs: Path) -> Iterator[Two]:
    with cluster_of_two(world_tmp, user, image_sqfs, "two-disks", n1="64m", n2="64m") as two:
        yield two


@pytest.fixture
def two(running: Two) -> Iterator[Two]:
    yield running
    until(running.cluster.disks_are_empty)


def is_one_on_each(said: str, image: str) -> bool:
    """Whether COPIES found one copy per node, on two file systems."""
    found = [line.split()[1:] for line in said.splitlines() if line.startswith("copy ")]
    size = str(os.stat(image).st_size)
    return len(found) == 2 and found[0][0] != found[1][0] and [one[1] for one in found] == [size, size]


@pytest.mark.parametrize("words", ["", "--ch-private-tmp"])
def test_each_node_has_its_own_copy_and_reads_it(two: Two, words: str) -> None:
    said = two.batch(f"{SRUN} {words} --ch-verbose -N2 -n2 cat /marker\n{COPIES}\n")
    assert is_one_on_each(said, two.env["IMG"]), said
    assert said.count("one\n") == 2 and said.count("copied to the nodes of job") == 1
    for node in ("n1", "n2"):
        assert re.search(rf"slurm-ch: {node}: .*ch-image={two.cluster.disk}/{NAME}\S+\.sqfs ", said), said


def test_one_copy_for_all_steps_wherever_they_run(two: Two) -> None:
    said = two.batch(f"{SRUN} -N1 -n1 -w n2 true & {SRUN} -N1 -n1 -w n1 true & wait\n{SRUN} -N2 -n2 true\n{COPIES}\n")
    assert said.count("copied to the nodes of job") == 1 and "warning" not in said
    assert is_one_on_each(said, two.env["IMG"]), said


def test_a_node_that_has_lost_its_copy_reads_the_image(two: Two) -> None:
    said = two.batch(
        f"{SRUN} -N2 -n2 true\nsrun --quiet -N1 -n1 -w n2 sh -c 'rm $DISK/*.sqfs'\n{SRUN} -N2 -n2 cat /marker\n"
    )
    (warning,) = re.findall(".*warning.*", said)
    assert warning.startswith("slurm-ch: n2: ") and "the image is read where it is" in warning
    assert said.count("one\n") == 2


def test_a_directory_of_the_users_on_each_node(two: Two) -> None:
    said = two.batch(
        "srun --quiet -N2 -n2 mkdir $DISK/mine\n"
        f"{SRUN}=$DISK/mine -N2 -n2 true\n{COPIES.replace('$DISK', '$DISK/mine')}\n"
    )
    assert is_one_on_each(said, two.env["IMG"]), said
    for node in ("n1", "n2"):
        until(lambda node=node: two.cluster.on_disk(node) == ["mine"])  # type: ignore[misc]
        assert two.cluster.on_disk(node, "mine") == []
    assert two.sh("srun -N2 -n2 rmdir $DISK/mine")[0] == 0


def test_a_requeued_job_copies_again(two: Two) -> None:
    """The end of its first run has removed the copies, though it is the same job."""
    (two.home / "job.sh").write_text(
        f"#!/bin/bash\n{SRUN} -N2 -n2 true\n{COPIES}\n"
        '[ -n "$SLURM_RESTART_COUNT" ] || { touch started; exec sleep 1000; }\n'
    )
    status, job, err = two.sh("sbatch --parsable -N2 --requeue --open-mode=append -o said.again job.sh")
    assert status == 0, err
    until((two.home / "started").exists)
    assert all(len(two.cluster.on_disk(node)) == 1 for node in ("n1", "n2"))
    assert two.sh(f"scontrol requeue {job.strip()}")[0] == 0
    until(two.cluster.disks_are_empty)

    said = two.home / "said.again"

    def has_copied_again() -> bool:
        # It waits for two minutes, which begin when all of its first run is over, unless root says otherwise. In the
        # same second, nodes still refuse the job as one that has ended.
        shown = two.cluster.run(["scontrol", "show", "job", job.strip()], user="root").stdout
        (text,) = re.findall(r"EligibleTime=(\S+)", shown)
        now, eligible = datetime.now(), datetime.fromisoformat(text)
        if "JobState=PENDING" in shown and eligible - timedelta(seconds=118) < now < eligible:
            two.cluster.run(["scontrol", "update", f"job={job.strip()}", "starttime=now"], user="root")
        return said.read_text().count("copied to the nodes of job") == 2

    until(has_copied_again)
    until(lambda: two.sh("squeue -h")[1] == "")
    assert "warning" not in said.read_text()


def test_where_one_node_has_no_room_nothing_runs_and_nothing_stays(
    user: str, image_sqfs: Path, world_tmp: Path
) -> None:
    with cluster_of_two(world_tmp, user, image_sqfs, "one-full-disk", n1="64m", n2="64k") as two:
        status, out, err = two.sh(f"{SRUN} -N2 -n2 echo ran")
        assert (status, out) == (31, ""), err
        assert re.fullmatch(r"slurm-ch: error: --ch-broadcast: sbcast can't copy the image to .*n2.*\n", err), err
        # A Slurm that says what it was needs no guess.
        assert "(no room on the node's disk?" in err or "No space left on device" in err, err
        until(two.cluster.disks_are_empty)
        # The other node alone can, and this one without.
        assert two.sh(f"{SRUN} -N1 -w n1 echo ran")[:2] == (0, "ran\n")
        assert two.sh("srun --quiet -w n2 --ch-image=$IMG echo ran")[:2] == (0, "ran\n")
        until(two.cluster.disks_are_empty)
