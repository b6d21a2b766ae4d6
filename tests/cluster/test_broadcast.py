# SPDX-License-Identifier: Apache-2.0
"""--ch-broadcast: Slurm's sbcast copies the image to the nodes' disks, once per job, and it goes with the job.

On a cluster of one node: virtual nodes share their disk, but for those of test_broadcast_nodes.py.
"""

from __future__ import annotations

import glob
import os
import pwd
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm_ch import agreement
from slurm_ch.sandbox.cluster import Cluster
from tests.command import WITH_SBATCH_WAIT

from .conftest import TIMEOUT

SRUN = "srun --quiet --ch-image=$IMG --ch-broadcast"


class One:
    """A cluster of one node, and its user."""

    def __init__(self, cluster: Cluster, user: str, image: Path, home: Path) -> None:
        self.cluster = cluster
        self.user = user
        self.home = home
        self.env = {**cluster.environ(user), "IMG": str(image), "PATH": "/usr/bin:/bin", "HOME": str(home)}
        self.env["SLURM_CH_CACHE"] = str(home / "cache")
        # Of this cluster's jobs: /tmp is the machine's.
        self.copies = f"{agreement.BROADCAST_FILE}*-{cluster._port}???-*"

    def sh(self, line: str) -> tuple[int, str, str]:
        done = self.cluster.run(
            ["bash", "-c", WITH_SBATCH_WAIT + line], user=self.user, timeout=TIMEOUT, env=self.env, cwd=self.home
        )
        return done.returncode, done.stdout, done.stderr

    def good(self, line: str) -> str:
        status, out, err = self.sh(line)
        assert status == 0, (out, err)
        return out


@pytest.fixture(scope="module")
def single() -> Iterator[Cluster]:
    with Cluster(nodes=1, cpus=8) as running:
        yield running


@pytest.fixture
def one(single: Cluster, user: str, image_sqfs: Path, world_tmp: Path, request: pytest.FixtureRequest) -> Iterator[One]:
    home = world_tmp / f"broadcast-{abs(hash(request.node.name))}"
    home.mkdir()
    os.chown(home, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
    made = One(single, user, image_sqfs, home)
    yield made
    until(lambda: not glob.glob(made.copies) and single.node_states()["n1"] == "idle")


def until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not what():
        assert time.monotonic() < deadline, glob.glob(f"{agreement.BROADCAST_FILE}*")
        time.sleep(0.05)


def test_srun_copies_it_before_the_step(one: One) -> None:
    status, out, err = one.sh(f"{SRUN} --ch-verbose sh -c 'cat /marker; ls {one.copies}'")
    assert status == 0, err
    marker, copy = out.splitlines()
    assert (
        marker
        and copy.startswith(f"{agreement.BROADCAST_FILE}{pwd.getpwnam(one.user).pw_uid}-")
        and copy.endswith(".sqfs")
    )
    assert f"ch-image={copy} " in err and f": {copy}\n" in err


def test_once_per_job(one: One) -> None:
    """Whether the steps run one after another or at the same time, and which command has the option."""
    (one.home / "job.sh").write_text(
        f"#!/bin/sh\n{SRUN} true & {SRUN} true & wait\n{SRUN} sh -c 'ls {one.copies}' > out\nsrun --quiet ls {one.copies}\n"
    )
    one.good("sbatch-wait -o said job.sh")
    assert len((one.home / "out").read_text().splitlines()) == 1
    assert (one.home / "said").read_text().count("copied to the nodes of job") == 1
    until(lambda: not glob.glob(one.copies))
    (one.home / "job.sh").write_text(
        f"#!/bin/sh\nsrun sh -c 'ls {one.copies}'\nsrun --ch-broadcast=no ls {one.copies}\n"
    )
    one.good("sbatch-wait -o said --ch-image=$IMG --ch-broadcast job.sh")
    said = (one.home / "said").read_text()
    assert said.count("copied") == 1 and len(set(said.splitlines()[1:])) == 1 and len(said.splitlines()) == 3
    out = one.good(
        f"salloc --quiet --ch-image=$IMG --ch-broadcast sh -c 'for i in 1 2; do srun sh -c \"ls {one.copies}\"; done'"
    )
    assert len(out.splitlines()) == 2 and len(set(out.splitlines())) == 1


def test_a_place_of_the_users(one: One) -> None:
    """A note in the usual place tells the job's end where the copy is."""
    (one.home / "disk").mkdir()
    os.chown(one.home / "disk", pwd.getpwnam(one.user).pw_uid, -1)
    out = one.good(f"{SRUN}=$PWD/disk --ch-bind=$PWD sh -c 'ls $PWD/disk; cat {one.copies}'")
    name, noted = out.splitlines()
    assert noted == f"{one.home}/disk/{name}"
    until(lambda: not list((one.home / "disk").iterdir()))


def test_refused_in_words(one: One, image_dir: Path) -> None:
    said = {
        f"srun --ch-image={image_dir} --ch-broadcast": (64, f"--ch-broadcast: {image_dir}: a directory; "),
        f"{SRUN}=disk": (64, "--ch-broadcast=disk: neither yes, no nor an absolute path"),
        f"{SRUN}=/no/such": (31, "--ch-broadcast: sbcast can't copy the image to /tmp/"),
    }
    said[f"{SRUN}=/no/such"] = (31, "--ch-broadcast: sbcast can't copy the image to /no/such/")
    for line, (code, text) in said.items():
        status, out, err = one.sh(f"{line} echo ran")
        assert (status, out) == (code, "") and text in err, (line, status, err)
    until(lambda: one.good("squeue -h") == "")


def test_a_directory_that_the_nodes_share(cluster: Cluster, user: str, image_sqfs: Path, world_tmp: Path) -> None:
    home = world_tmp / "broadcast-shared"
    home.mkdir()
    os.chown(home, pwd.getpwnam(user).pw_uid, -1)
    two = One(cluster, user, image_sqfs, home)
    status, out, err = two.sh(f"{SRUN} -N2 -n2 echo ran")
    assert (status, out) == (31, "") and "File exists (the nodes share this directory?" in err, err
    until(lambda: not glob.glob(two.copies))


def test_the_next_step_runs_after_a_copy_that_failed(one: One) -> None:
    """Slurm would keep a step that nobody has started, and with it the CPUs that the next one waits for."""
    (one.home / "job.sh").write_text(
        f"#!/bin/sh\n{SRUN}=/no/such true\necho $?\nsrun --quiet --exact echo later\nsqueue -h -s\n"
    )
    one.good("sbatch-wait -n1 -o said job.sh")
    refused, status, later, *steps = (one.home / "said").read_text().splitlines()
    assert "sbcast can't copy the image" in refused and (status, later) == ("31", "later")
    assert [step.split()[0].partition(".")[2] for step in steps] in ([], ["batch"])


def test_where_a_node_has_no_copy_the_image_counts(one: One) -> None:
    (one.home / "job.sh").write_text(f"#!/bin/sh\n{SRUN} true\nrm {one.copies}\n{SRUN} cat /marker\n")
    one.good("sbatch-wait -o said job.sh")
    *_, warning, marker = (one.home / "said").read_text().splitlines()
    assert "warning: --ch-broadcast: /tmp/" in warning and "the image is read where it is" in warning
    assert marker == one.good("srun --quiet --ch-image=$IMG cat /marker").strip()


def test_another_users_file_is_not_taken_for_it(one: One) -> None:
    (one.home / "job.sh").write_text(
        f"#!/bin/sh\n{SRUN} true\ntouch ready\nuntil [ -e go ]; do sleep 0.05; done\n{SRUN} true\n"
    )
    one.good("sbatch -o said job.sh")
    until((one.home / "ready").exists)
    (copy,) = glob.glob(one.copies)
    os.chown(copy, 0, 0)
    (one.home / "go").touch()
    until(lambda: one.good("squeue -h") == "")
    assert f"{copy}: not a file that you alone can write to" in (one.home / "said").read_text()
    assert glob.glob(one.copies) == [copy]  # and what isn't the user's stays
    os.unlink(copy)
