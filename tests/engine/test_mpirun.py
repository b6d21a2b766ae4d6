# SPDX-License-Identifier: Apache-2.0
"""A named join without Slurm: Open MPI's mpirun starts the peers [J1-J6]."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests import leftovers

from .conftest import SLURM_CH, settings

# No resource manager, no remote shell, no pinning: four processes on this machine.
MPIRUN = ("mpirun", "--oversubscribe", "--bind-to", "none", "--mca", "plm_rsh_agent", "false", "-n")


def mpirun(count: int, user: str, *words: object, killed: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a command on `count` ranks as the user; nothing may be left, unless a process is `killed`."""
    before = leftovers.Snapshot(1)
    common = settings(user)
    done = subprocess.run(
        [*MPIRUN, str(count), *map(str, words)], check=False, capture_output=True, text=True, timeout=60,
        stdin=subprocess.DEVNULL, **common,  # type: ignore[call-overload]
    )  # fmt: skip
    if killed:
        return done
    before.wait_until_clean()
    assert leftovers.in_shm() == []
    return done


@pytest.mark.row("--join", "W2")
def test_j1_peers_of_mpirun_share_one_container(image: Path, user: str) -> None:
    show = "echo $OMPI_COMM_WORLD_RANK $(readlink /proc/self/ns/mnt) $(cat /marker)"
    done = mpirun(4, user, SLURM_CH, "run", "--join", image, "--", "sh", "-c", show)
    assert done.returncode == 0, done
    ranks = sorted(line.split() for line in done.stdout.splitlines())
    assert [rank for rank, _, _ in ranks] == ["0", "1", "2", "3"]
    assert len({namespace for _, namespace, _ in ranks}) == 1
    assert {marker for _, _, marker in ranks} == {"one"}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.row("J4")
def test_j4_commands_that_end_at_once(image_dir: Path, user: str, count: int) -> None:
    done = mpirun(count, user, SLURM_CH, "run", "-j", image_dir, "--", "true")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.row("J1")
def test_j1_two_joins_of_one_mpirun(image_dir: Path, user: str) -> None:
    """The second is the first's successor, under the same tag."""
    join = f"{SLURM_CH} run --join {image_dir} -- cat /marker"
    done = mpirun(2, user, "sh", "-c", f"{join}; {join}")
    assert (done.returncode, done.stdout) == (0, "one\n" * 4), done


@pytest.mark.row("--join-ct")
def test_j1_count_and_tag_given(image_dir: Path, user: str, open_tmp: Path) -> None:
    """The command line's word comes before mpirun's: two joins of two among four ranks."""
    here = open_tmp / "here"
    here.touch()
    here.chmod(0o666)
    # All stay until the last one is in: a namespace's number is given again once it is gone.
    stay = f"echo >> {here}; until [ $(wc -l < {here}) = 4 ]; do sleep 0.1; done"
    show = f"echo $((OMPI_COMM_WORLD_RANK % 2)) $(readlink /proc/self/ns/mnt); {stay}"
    join = f"exec {SLURM_CH} run --join-ct=2 --join-tag=half-$((OMPI_COMM_WORLD_RANK % 2)) {image_dir} --"
    done = mpirun(4, user, "sh", "-c", f"{join} sh -c '{show}'")
    assert done.returncode == 0, done
    pairs = [tuple(line.split()) for line in done.stdout.splitlines()]
    assert len(pairs) == 4
    assert len(set(pairs)) == 2
    assert len({namespace for _, namespace in pairs}) == 2


def test_j1_nonsense_names_the_variable(image_dir: Path, user: str) -> None:
    words = ["env", "OMPI_COMM_WORLD_LOCAL_SIZE=many", SLURM_CH, "run", "-j", str(image_dir), "--", "true"]
    done = mpirun(1, user, *words)
    assert done.returncode == 64
    assert "OMPI_COMM_WORLD_LOCAL_SIZE=many: not a number" in done.stderr


@pytest.mark.row("J5")
def test_j5_a_rank_that_is_killed_hurts_nobody(image_dir: Path, user: str, open_tmp: Path) -> None:
    """mpirun then ends the others, as it does without a container; ranks that came before that have joined."""
    gate = open_tmp / "gate"
    os.mkfifo(gate)
    os.chmod(gate, 0o666)
    join = f"{SLURM_CH} run -j --join-timeout=3 -b {open_tmp}:{open_tmp} {image_dir}"
    line = f"test $OMPI_COMM_WORLD_RANK != 1 || {{ read x < {gate}; kill -9 $$; }}; exec {join} -- sh -c 'echo in; echo > {gate}; sleep 60'"
    done = mpirun(2, user, "sh", "-c", line)
    assert done.returncode != 0
    assert done.stdout == "in\n"
    assert mpirun(2, user, SLURM_CH, "run", "-j", image_dir, "--", "true").returncode == 0


@pytest.mark.row("J1")
def test_j1_by_slurms_variables(good_join: None, image_dir: Path, user: str) -> None:
    """Counts that no command line and no mpirun give, each from its own variable."""
    cases = (
        {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_STEP_TASKS_PER_NODE": "3(x2),2", "SLURM_NODEID": "2"},
        {"SLURM_JOB_ID": "1", "SLURM_CPUS_ON_NODE": "2"},
        {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
        {},
    )
    for variables in cases:
        common = settings(user)
        env = {**common["env"], **variables}  # type: ignore[dict-item]
        # Where nothing says so, the command line says how many; the tag is the parent's.
        join = "--join" if variables else "--join-ct=2"
        command = [SLURM_CH, "run", join, str(image_dir), "--", "readlink", "/proc/self/ns/mnt"]
        peers = [
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **{**common, "env": env})  # type: ignore[call-overload]
            for _ in range(2)
        ]
        said = {peer.communicate(timeout=30)[0] for peer in peers}
        assert [peer.returncode for peer in peers] == [0, 0]
        assert len(said) == 1


@pytest.fixture
def good_join() -> object:
    """Nothing of a join before, and nothing afterwards."""
    before = leftovers.Snapshot(1)
    yield None
    before.wait_until_clean()
