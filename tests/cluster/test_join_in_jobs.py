# SPDX-License-Identifier: Apache-2.0
"""Joins without the plugin, in jobs as users write them: which peers are in which container, and what is left.

Each peer prints its label and its container, and stays until all have done so: a namespace's number is given again
once it is gone.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from slurm_ch.sandbox.cluster import Cluster
from tests import checkout, leftovers
from tests.command import SLURM_CH

from .conftest import Run

OPEN_MPI = "mpirun --oversubscribe --bind-to none --mca plm_rsh_agent false --mca ras ^slurm --mca plm ^slurm -n"
HYDRA = "mpiexec.hydra -launcher fork -rmk user -host localhost -n"


class Gathering:
    """Peers that tell where they are, and wait for each other."""

    def __init__(self, sh: Run, place: Path) -> None:
        self.sh = sh
        self.place = place
        self.here = place / "here"

    def peer(self, count: int, label: str, image: str = "$IMG", join: str = "--join") -> str:
        """Return the command of one of `count` peers."""
        script = self.place / "peer"
        script.write_text(
            f"echo $1 $(cat /marker) $(readlink /proc/self/ns/mnt); echo >> {self.here}\n"
            f"until [ $(wc -l < {self.here}) -ge {count} ]; do sleep 0.1; done\n"
        )
        return f"{SLURM_CH} run {join} {image} -- sh {script} {label}"

    def run(self, line: str) -> dict[tuple[str, str], Counter[str]]:
        """Run a line of shell; return by label and marker how many were in which container."""
        self.here.write_text("")
        self.here.chmod(0o666)
        done = self.sh(line)
        assert done.returncode == 0, (done.stdout, done.stderr)
        found: dict[tuple[str, str], Counter[str]] = {}
        lines = [line.split() for line in done.stdout.splitlines()]
        assert {len(line) for line in lines} <= {3}, done.stdout
        for label, marker, namespace in lines:
            found.setdefault((label, marker), Counter())[namespace] += 1
        return found

    def batch(self, body: str, options: str = "") -> dict[tuple[str, str], Counter[str]]:
        """Run a batch script likewise."""
        script, out = self.place / "job.sh", self.place / "out"
        script.write_text(f"#!/bin/bash\n{body}\nwait\n")
        out.write_text("")
        out.chmod(0o666)
        return self.run(
            f"sbatch-wait --export=ALL,IMG -o {out} {options} {script} > /dev/null || {{ cat {out} >&2; exit 1; }}; cat {out}"
        )


@pytest.fixture
def gathering(sh: Run, world_tmp: Path) -> Gathering:
    place = world_tmp / "gathering"
    place.mkdir(exist_ok=True)
    return Gathering(sh, place)


def apart(found: dict[tuple[str, str], Counter[str]]) -> list[int]:
    """Return the peers' numbers by label, all of one label in one container, and no other label's there."""
    containers = [container for counts in found.values() for container in counts]
    assert all(len(counts) == 1 for counts in found.values()), found
    assert len(set(containers)) == len(containers), found
    return sorted(sum(counts.values()) for counts in found.values())


@pytest.mark.row("J1", "W1")
def test_multi_prog(gathering: Gathering, image_sqfs: Path, other_sqfs: Path) -> None:
    """One step, several commands: those of one image are in one container."""
    conf = gathering.place / "multi.conf"
    one, two = (gathering.peer(5, label, str(image)) for label, image in (("one", image_sqfs), ("two", other_sqfs)))
    conf.write_text(f"0-1 {one}\n2-3 {two}\n4 {one}\n")
    found = gathering.run(f"srun -N1 --overcommit -n5 --multi-prog {conf}")
    assert set(found) == {("one", "one"), ("two", "two")}
    assert apart(found) == [2, 3]


def interleaved(gathering: Gathering) -> tuple[str, str]:
    """Return the commands of two pairs of peers: the second's come in between the first's two."""
    until = f"until [ $(wc -l < {gathering.here}) -ge %d ]; do sleep 0.1; done"
    first = f"test $SLURM_LOCALID = 0 || {until % 3}; exec {gathering.peer(4, 'first')}"
    return f"sh -c '{first}'", f"sh -c '{until % 1}; exec {gathering.peer(4, 'second')}'"


@pytest.mark.row("J1", "W1")
def test_components_of_a_het_job(gathering: Gathering) -> None:
    """Slurm gives them different nodes, which are one machine here: by their names they are told apart."""
    body = "#SBATCH -w n1 -n2 --overcommit\n#SBATCH hetjob\n#SBATCH -w n2 -n2 --overcommit\n"
    body += "srun --het-group=0 {} : --het-group=1 {}".format(*interleaved(gathering))
    assert apart(gathering.batch(body)) == [2, 2]


@pytest.mark.row("J1", "W1")
def test_components_of_a_het_step(gathering: Gathering) -> None:
    """Likewise, and of one step id."""
    body = "srun -w n1 -n2 {} : -w n2 -n2 {}".format(*interleaved(gathering))
    assert apart(gathering.batch(body, "-w n1,n2 -n6 --overcommit")) == [2, 2]


@pytest.mark.row("J1", "W1")
def test_steps_at_once_on_a_node(gathering: Gathering) -> None:
    step = "srun -N1 --overlap --overcommit -n2"
    body = "\n".join(f"{step} {gathering.peer(8, f'step{n}')} &" for n in range(4))
    assert apart(gathering.batch(body, "-w n1 -n8 --overcommit")) == [2] * 4


@pytest.mark.parametrize("mpirun", [OPEN_MPI, HYDRA], ids=["Open MPI", "MPICH"])
@pytest.mark.row("J1", "W1")
def test_two_mpiruns_in_a_batch_script(gathering: Gathering, mpirun: str) -> None:
    """Two mpiruns at the same time, of two and of three ranks."""
    body = "\n".join(f"{mpirun} {n} {gathering.peer(5, f'of{n}')} &" for n in (2, 3))
    assert apart(gathering.batch(body, "-w n1 -n5 --overcommit")) == [2, 3]


@pytest.mark.parametrize("mpirun", [OPEN_MPI, HYDRA], ids=["Open MPI", "MPICH"])
def test_mpiruns_one_after_the_other_in_a_batch_script(gathering: Gathering, mpirun: str) -> None:
    body = "\n".join(f"{mpirun} 2 {SLURM_CH} run --join $IMG -- sh -c 'echo {n} $(cat /marker) -'" for n in (1, 2, 3))
    found = gathering.batch(body, "-w n1 -n2 --overcommit")
    assert found == {(str(n), "one"): Counter({"-": 2}) for n in (1, 2, 3)}


@pytest.mark.row("D13")
def test_scancel_while_there_is_a_holder(cluster: Cluster, user: str, sh: Run, world_tmp: Path) -> None:
    """One of two tasks never joins: the container waits for it, and goes with the job."""
    gate = world_tmp / "never"
    os.mkfifo(gate)
    gate.chmod(0o666)
    line = f"test $SLURM_PROCID = 0 || exec cat {gate}; {SLURM_CH} run --join $IMG -- cat /marker; exec cat {gate}"
    env = {**cluster.environ(user), "PATH": "/usr/bin:/bin", "IMG": str(world_tmp / "image.sqfs")}
    srun = cluster.popen(
        ["srun", "-N1", "--overcommit", "-n2", "sh", "-c", line], user=user, env=env, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert srun.stdout is not None
    assert srun.stdout.readline() == "one\n"
    assert set(leftovers.holders()) == {"guard", "holder"}
    sh("scancel --user $USER")
    srun.communicate(timeout=30)
    assert srun.returncode != 0
    gate.unlink()


@pytest.mark.row("J2", "D12")
def test_a_task_that_never_comes_delays_nobody(sh: Run) -> None:
    """The holder waits for it until the step's end, and srun not for the holder."""
    done = sh(
        f"srun -N1 --overcommit -n3 sh -c 'test $SLURM_PROCID = 1 || exec {SLURM_CH} run --join $IMG -- cat /marker'"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "one\n" * 2, "")


# ---- As users install it ----


@pytest.fixture(scope="module")
def home(world_tmp: Path, user: str, image_sqfs: Path) -> Path:
    """A user's home with a virtual environment into which they have installed a wheel, without a network."""
    place = world_tmp / "home"
    place.mkdir()
    source, wheels = world_tmp / "source", world_tmp / "wheels"
    wheels.mkdir()
    checkout.copy(source)
    code = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, wheels], cwd=source, check=True, capture_output=True, timeout=300)
    (wheel,) = wheels.iterdir()
    subprocess.run(["chown", f"{user}:", place], check=True)
    # What it needs of Python's is Debian's here.
    line = f"/usr/bin/python3 -m venv --system-site-packages {place}/venv && {place}/venv/bin/pip install -q --no-index --no-deps {wheel}"
    env = {"PATH": "/usr/bin:/bin", "HOME": str(place)}
    done = subprocess.run(
        ["bash", "-c", line], user=user, group=user, extra_groups=[], env=env, cwd="/", capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return place


@pytest.mark.parametrize(
    "starter", ["srun --overcommit -n4", f"{OPEN_MPI} 4", f"{HYDRA} 4"], ids=["srun", "Open MPI", "MPICH"]
)
@pytest.mark.parametrize("command", ["slurm-ch run", "ch-run"])
@pytest.mark.row("W2")
def test_a_wheel_in_a_users_venv(gathering: Gathering, home: Path, starter: str, command: str) -> None:
    """By its name in PATH; and under ch-run's, which a workflow may call."""
    peer = gathering.peer(4, "-").replace(f"{SLURM_CH} run", command)
    body = f"ln -sf slurm-ch {home}/venv/bin/ch-run; PATH={home}/venv/bin:$PATH; {starter} {peer}"
    assert apart(gathering.batch(body, "-w n1 -n4 --overcommit")) == [4]


def test_the_same_through_a_link_and_in_one_command(good: Callable[..., str], home: Path) -> None:
    good(f"mkdir -p {home}/bin; ln -sf ../venv/bin/slurm-ch {home}/bin")
    assert good(f"srun -N1 -n2 --overcommit {home}/bin/slurm-ch run $IMG -- cat /marker") == "one\n" * 2
    assert good(f"cd {home}; ./venv/bin/slurm-ch --version").startswith("slurm-ch")
    # Errors are Python's.
    done = good(f"! {home}/bin/slurm-ch run --nonsense $IMG -- true 2>&1")
    assert "--nonsense" in done
