# SPDX-License-Identifier: Apache-2.0
"""Programs that start a join's peers without Slurm: xargs, GNU parallel, Open MPI's mpirun, MPICH's hydra.

More of Open MPI's: tests/engine/test_mpirun.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Place

# Each peer says where it is, and stays until all have done so: a namespace's number is given again once it is gone.
WHERE = "echo $(readlink /proc/self/ns/mnt) $(cat /marker); echo >> {here}; until [ $(wc -l < {here}) = {count} ]; do sleep 0.1; done"
OPEN_MPI = "mpirun --oversubscribe --bind-to none --mca plm_rsh_agent false -n {}"
HYDRA = "mpiexec.hydra -n {}"

Run = Callable[..., Counter[str]]


@pytest.fixture
def run(place: Place, open_tmp: Path) -> Run:
    """Run a shell command in which JOIN is a peer of `count`; return how many peers each container had."""

    def call(line: str, count: int, join: str = "--join") -> Counter[str]:
        here = open_tmp / "here"
        here.write_text("")
        here.chmod(0o666)
        script = open_tmp / "peer"
        script.write_text(WHERE.format(here=here, count=count) + "\n")
        script.chmod(0o644)
        # What the image has is a shell; what it runs is in a directory of the host's that it has too.
        words = f"{place.program} run {join} -b {open_tmp} {place.image} -- sh {script}"
        env = {"PATH": "/usr/bin:/bin", "HOME": str(open_tmp), "USER": "chuser"}
        starter = place.execute(["bash", "-c", line.replace("JOIN", words)], env=env)
        code, out, err = starter.end()
        assert (code, err) == (0, ""), (code, out, err)
        lines = out.splitlines()
        assert len(lines) == count
        assert all(one.endswith(" one") for one in lines)
        return Counter(lines)

    return call


@pytest.mark.row("J1", "W2")
def test_xargs(run: Run) -> None:
    """Its children are a join's peers, if their number is given."""
    assert set(run("seq 4 | xargs -P4 -I{} JOIN", 4, "--join-ct=4").values()) == {4}


@pytest.mark.row("J1", "W2")
def test_gnu_parallel(run: Run) -> None:
    assert set(run("seq 4 | parallel -j4 -n0 JOIN", 4, "--join-ct=4").values()) == {4}


@pytest.mark.parametrize("starter", ["xargs -P4 -I{}", "parallel -j4 -n0"])
def test_single_commands(run: Run, starter: str) -> None:
    """Each has a container of its own."""
    assert set(run(f"seq 4 | {starter} JOIN", 4, "").values()) == {1}


@pytest.mark.parametrize("starter", [OPEN_MPI, HYDRA], ids=["Open MPI", "MPICH"])
@pytest.mark.row("J1", "W2")
def test_mpirun(run: Run, starter: str) -> None:
    assert set(run(f"{starter.format(4)} JOIN", 4).values()) == {4}


@pytest.mark.parametrize("starter", [OPEN_MPI, HYDRA], ids=["Open MPI", "MPICH"])
@pytest.mark.row("J1", "W1")
def test_two_at_once(place: Place, open_tmp: Path, starter: str) -> None:
    """Started by one shell; the second's ranks all come between the first's two: each has its own container."""
    here, script = open_tmp / "here", open_tmp / "peer"
    here.touch()
    here.chmod(0o666)
    until = f"until [ $(wc -l < {here}) -ge %d ]; do sleep 0.1; done"
    script.write_text(f"echo $1 $(readlink /proc/self/ns/mnt); echo >> {here}; {until % 4}\n")
    join = f"{place.program} run --join -b {open_tmp} {place.image} -- sh {script}"
    rank = "${OMPI_COMM_WORLD_RANK-$PMI_RANK}"
    mpirun = starter.format(2)
    line = (
        f"{mpirun} sh -c 'test {rank} = 0 || {until % 3}; exec {join} first' & "
        f"{until % 1}; {mpirun} {join} second & wait"
    )
    env = {"PATH": "/usr/bin:/bin", "HOME": str(open_tmp), "USER": "chuser"}
    code, out, err = place.execute(["bash", "-c", line], env=env).end()
    assert (code, err) == (0, "")
    found = Counter(out.splitlines())
    assert sorted(line.split()[0] for line in found) == ["first", "second"]
    assert set(found.values()) == {2}


@pytest.mark.row("L2")
def test_joins_in_a_row_of_mpichs(place: Place) -> None:
    """Two per rank, unsynchronised."""
    join = f"{place.program} run --join {place.image} -- cat /marker"
    env = {"PATH": "/usr/bin:/bin", "HOME": "/", "USER": "chuser"}
    assert place.execute(["mpiexec.hydra", "-n", "3", "sh", "-c", f"{join}; {join}"], env=env).end() == (
        0,
        "one\n" * 6,
        "",
    )
