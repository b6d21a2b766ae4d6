# SPDX-License-Identifier: Apache-2.0
"""Without the plugin: `srun slurm-ch run --join`, the peers finding each other by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import leftovers
from tests.command import SLURM_CH

from .conftest import Run

Good = Callable[..., str]

RUN = f"{SLURM_CH} run --join $IMG --"


@pytest.mark.row("--join", "W1")
def test_peers_of_each_node_share_one_container(good: Good, world_tmp: Path) -> None:
    # All stay until the last one is in: a namespace's number is given again once it is gone.
    here = world_tmp / "peers"
    here.touch()
    here.chmod(0o666)
    stay = f"echo >> {here}; until [ $(wc -l < {here}) = 7 ]; do sleep 0.1; done"
    out = good(
        f"srun --overcommit -N2 -n7 {RUN} sh -c 'echo $SLURMD_NODENAME $SLURM_PROCID $(readlink /proc/self/ns/mnt); {stay}'"
    )
    tasks = [line.split() for line in out.splitlines()]
    assert {int(rank) for _, rank, _ in tasks} == set(range(7))
    for node in ("n1", "n2"):
        assert len({namespace for where, _, namespace in tasks if where == node}) == 1
    assert len({namespace for _, _, namespace in tasks}) == 2
    assert leftovers.in_shm() == []


def test_a_command_that_ends_at_once(good: Good) -> None:
    for _ in range(5):
        good(f"srun -N1 --overcommit -n16 {RUN} true")
    assert leftovers.in_shm() == []


@pytest.mark.row("L2")
def test_two_joins_in_a_row_and_their_own_tag(good: Good) -> None:
    join = f"{SLURM_CH} run --join-ct=2 --join-tag=mine $IMG -- cat /marker"
    assert good(f"srun -N1 --overcommit -n2 sh -c '{join}; {join}'") == "one\n" * 4


def test_values_stay_each_tasks_own(good: Good) -> None:
    out = good(f"srun -N1 --overcommit -n4 {RUN} sh -c 'echo $SLURM_PROCID $SLURM_LOCALID'")
    assert sorted(out.splitlines()) == [f"{n} {n}" for n in range(4)]


def test_an_image_that_is_none_fails_all(sh: Run) -> None:
    done = sh(f"srun -N1 --overcommit -n4 {SLURM_CH} run --join /nonexistent -- true")
    assert done.returncode in (31, 32)
    assert "can't stat image: /nonexistent: No such file or directory" in done.stderr
    assert leftovers.in_shm() == []


@pytest.mark.row("D3")
def test_a_task_killed_before_it_arrives_costs_the_others_nothing(sh: Run, world_tmp: Path) -> None:
    """They run; Slurm decides, by --kill-on-bad-exit, whether they may."""
    here = world_tmp / "one-is-killed"
    here.mkdir()
    here.chmod(0o777)
    # Files, because srun of Slurm 20.11 on a busy machine may end before it has printed what the tasks wrote.
    line = f'test $SLURM_PROCID != 2 || exec sh -c "kill -9 \\$\\$"; exec {RUN} touch {here}/$SLURM_PROCID'
    # The join's own timeout is 30 s.
    done = sh(f"srun -N1 --overcommit -n4 sh -c '{line}'", timeout=20)
    assert done.returncode != 0
    assert sorted(path.name for path in here.iterdir()) == ["0", "1", "3"], done.stderr
    assert "slurm-ch" not in done.stderr


@pytest.mark.row("J1")
def test_contradicting_environment_names_the_variable(sh: Run) -> None:
    done = sh(f"srun -N1 -n1 env SLURM_STEP_TASKS_PER_NODE=bananas {RUN} true")
    assert done.returncode == 64
    assert "SLURM_STEP_TASKS_PER_NODE=bananas: not a list of task counts" in done.stderr
    done = sh(f"srun -N1 -n1 env SLURM_NODEID=7 {RUN} true")
    assert done.returncode == 64
    assert "SLURM_NODEID=7: not among the nodes" in done.stderr


@pytest.mark.row("J2")
def test_a_count_that_is_too_high_costs_nothing(good: Good) -> None:
    """Nobody waits for a peer that never comes: the step ends, and what holds the container for it ends with it."""
    good(f"srun -N1 -n1 {SLURM_CH} run --join-ct=2 --join-timeout=1 $IMG -- true")
