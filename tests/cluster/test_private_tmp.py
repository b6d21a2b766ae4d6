# SPDX-License-Identifier: Apache-2.0
"""job_container/tmpfs: a job's private /tmp is the container's /tmp."""

from __future__ import annotations

import os
import select
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm_ch import linux
from slurm_ch.sandbox.cluster import Cluster
from tests.command import SLURM_CH

from .conftest import TIMEOUT
from .own_disks import OwnDisks

# Its name until 25.11, and since.
TYPE = {False: "JobContainerType=job_container/tmpfs", True: "NamespaceType=namespace/tmpfs"}


class PrivateTmp(Cluster):
    """A cluster that gives each job a /tmp of its own."""

    def __init__(self, contain: bool = False, nodes: int = 1) -> None:
        super().__init__(nodes=nodes, directory_parent="/var/tmp")
        self.contain = ",contain_spank" * contain

    def _prepare(self) -> None:
        new = self.version >= (25, 11)
        self.slurm_conf_extra = f"{TYPE[new]}\nPrologFlags=Contain\nSlurmdParameters=config_overrides{self.contain}\n"
        super()._prepare()
        self._write("job_container.conf", f"BasePath={self._base()}\nAutoBasePath=true\n".encode())

    def _base(self) -> str:
        os.mkdir(self._path("base"))
        return self._path("base")


@pytest.fixture
def one_cpu() -> Iterator[None]:
    """A mount namespace of the test's own, and one CPU for it and all that it starts.

    slurmd binds the file of the job's new mount namespace in its own, which the
    kernel allows only to the older of the two. As seen on Linux 6.18, with more
    than one CPU it fails at random (ns base mount failed: Invalid argument); with
    one it never did.
    """
    home, where, cpus = os.open("/proc/self/ns/mnt", os.O_RDONLY), os.getcwd(), os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE, None)
    yield
    linux.setns(home)
    os.close(home)
    os.chdir(where)
    os.sched_setaffinity(0, cpus)


@pytest.fixture
def outside_tmp() -> Iterator[Path]:
    """A directory that is the same in every job: not below /tmp."""
    path = Path(tempfile.mkdtemp(prefix="slurm-ch-tests-", dir="/var/tmp"))
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)


def run_script(cluster: Cluster, user: str, place: Path, words: list[str], text: str) -> str:
    """Run a batch script, and return the output of it and its steps."""
    done, script, out = place / "done", place / "script", place / "out"
    os.mkfifo(done)
    done.chmod(0o666)
    script.write_text(f"#!/bin/sh\n{text}echo > {done}\n")
    fifo = os.open(done, os.O_RDWR)
    with cluster:
        # sbatch: srun gives up on a node whose prolog has still to mount. Not its --wait, which looks every few seconds.
        submitted = cluster.run(["sbatch", *words, f"--output={out}", str(script)], user=user)
        assert submitted.returncode == 0, submitted.stderr
        assert select.select([fifo], [], [], TIMEOUT)[0], cluster.logs("n1") + cluster.logs("slurmctld")[-1500:]
    os.close(fifo)
    return out.read_text()


@pytest.mark.usefixtures("one_cpu")
@pytest.mark.parametrize("contain", [False, True])
def test_a_jobs_private_tmp(user: str, image_sqfs: Path, outside_tmp: Path, contain: bool) -> None:
    image = outside_tmp / "image.sqfs"
    image.write_bytes(image_sqfs.read_bytes())
    text = f"""touch /tmp/from-the-script
srun --ch-image={image} sh -c 'ls /tmp; touch /tmp/from-the-container'
ls /tmp
srun --ch-image={image} --ch-private-tmp ls /tmp
srun --overlap --ch-image={image} sleep 1000 &
until {SLURM_CH} ps $SLURM_JOB_ID | grep -q image.sqfs; do sleep 0.1; done
{SLURM_CH} enter $SLURM_JOB_ID -- ls /tmp
kill $!
wait
"""
    all_said = run_script(PrivateTmp(contain), user, outside_tmp, [], text)
    both = "from-the-container\nfrom-the-script\n"
    said = "".join(line for line in all_said.splitlines(keepends=True) if line.startswith("from"))
    assert said == "from-the-script\n" + both + both, all_said
    assert not Path("/tmp/from-the-script").exists()


class PrivateTmpOnOwnDisks(OwnDisks, PrivateTmp):
    """The same with two nodes, each of which has the jobs' directories on its own disk."""

    def _base(self) -> str:
        return str(self.disk)


@pytest.mark.usefixtures("one_cpu")
def test_broadcast_to_a_jobs_private_tmp(user: str, image_sqfs: Path, outside_tmp: Path) -> None:
    """The copy is in the job's own /tmp on each node, and goes with it."""
    image = outside_tmp / "image.sqfs"
    image.write_bytes(image_sqfs.read_bytes())
    srun = f"srun -N2 -n2 --ch-image={image} --ch-broadcast --ch-verbose"
    text = f"""export SLURM_CH_CACHE=/tmp/cache
{srun} cat /marker
{srun} --ch-private-tmp cat /marker
srun -N2 -n2 sh -c 'ls /tmp/slurm_ch-image-*'
"""
    disk = outside_tmp / "disk"
    disk.mkdir()
    said = run_script(PrivateTmpOnOwnDisks(disk, {"n1": "64m", "n2": "64m"}), user, outside_tmp, ["-N2"], text)
    (copy,) = {line for line in said.splitlines() if line.startswith("/tmp/slurm_ch-image-")}
    assert said.count(f"{copy}\n") == 3 and said.count("copied to the nodes of job") == 1, said
    assert said.count("one\n") == 4 and said.count(f"ch-image={copy} ") == 4 and "warning" not in said, said
    assert not Path(copy).exists()
