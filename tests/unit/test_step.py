# SPDX-License-Identifier: Apache-2.0
"""Tag and count [J1], from nothing but an environment."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_ch.errors import UsageError
from slurm_ch.request import step

BASE = {"SLURM_JOB_ID": "12", "SLURM_STEP_ID": "0", "SLURMD_NODENAME": "n1", "SLURM_GTIDS": "0,1"}


@pytest.mark.row("J1")
def test_tag_has_all_that_tells_steps_apart() -> None:
    tags = {
        step.tag(BASE),
        step.tag({**BASE, "SLURM_JOB_ID": "13"}),
        step.tag({**BASE, "SLURM_STEP_ID": "1"}),
        step.tag({**BASE, "SLURMD_NODENAME": "n2"}),
        step.tag({**BASE, "SLURM_GTIDS": "2,3"}),
        step.tag({**BASE, "SLURM_HET_JOB_OFFSET": "1"}),
        step.tag({**BASE, "SLURM_RESTART_COUNT": "1"}),
    }
    assert len(tags) == 7
    assert step.tag(BASE) == "12.0.0.n1"


def test_tag_of_a_batch_step() -> None:
    env = {"SLURM_JOB_ID": "12", "SLURMD_NODENAME": "n1"}
    for number in ("4294967291", "-5"):
        assert step.tag(env) == step.tag({**env, "SLURM_STEP_ID": number}) == "12.batch.0.n1"


def test_tag_has_only_letters_that_a_name_may_have() -> None:
    assert step.tag({**BASE, "SLURMD_NODENAME": "a/b ü"}) == "12.0.0.a_b___"


@pytest.mark.parametrize("name", ["SLURM_JOB_ID", "SLURM_STEP_ID"])
@pytest.mark.parametrize("value", ["", "x", "-", "--1", "1 ", "٣", "9" * 40])
def test_tag_refuses_nonsense(name: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"^{name}={value}: not a number$"):
        step.tag({**BASE, name: value})


@pytest.mark.row("J1")
def test_tag_outside_slurm() -> None:
    with pytest.raises(UsageError, match="--join-tag: required outside Slurm"):
        step.tag({})
    assert step.tag({"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, ppid=7) == "parent-7"
    assert step.tag({}, ppid=7) == "parent-7"
    # A shell between mpirun and us changes the parent, not the job.
    named = {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_NAMESPACE": "prterun-n1-12@1"}
    assert step.tag(named, ppid=7) == step.tag(named, ppid=8) == "mpirun-prterun-n1-12_1"


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("1", [1]),
        ("4(x2),3", [4, 4, 3]),
        ("2,1", [2, 1]),
        ("3,4(x3)", [3, 4, 4, 4]),
        ("1(x1)", [1]),
    ],
)
@pytest.mark.row("J1")
def test_count_of_each_node(text: str, counts: list[int]) -> None:
    for node, count in enumerate(counts):
        assert step.local_task_count({"SLURM_STEP_TASKS_PER_NODE": text, "SLURM_NODEID": str(node)}) == count
    with pytest.raises(UsageError, match=f"SLURM_NODEID={len(counts)}: not among"):
        step.local_task_count({"SLURM_STEP_TASKS_PER_NODE": text, "SLURM_NODEID": str(len(counts))})


@pytest.mark.parametrize("text", ["", "x", "4(x", "4(x2", "4x2", "4(x0)", "4(2)", "1,,2", "4(x2)3", "-1", "٣", " 1"])
def test_count_refuses_nonsense(text: str) -> None:
    with pytest.raises(UsageError, match="^SLURM_STEP_TASKS_PER_NODE="):
        step.local_task_count({"SLURM_STEP_TASKS_PER_NODE": text, "SLURM_NODEID": "5"})


def test_count_of_a_huge_cluster_costs_nothing() -> None:
    env = {"SLURM_STEP_TASKS_PER_NODE": "4(x99999999999),3", "SLURM_NODEID": "99999999999"}
    assert step.local_task_count(env) == 3


@pytest.mark.parametrize("count", ["0", "9999999999"])
def test_count_out_of_range(count: str) -> None:
    with pytest.raises(UsageError, match=f"^SLURM_STEP_TASKS_PER_NODE={count}"):
        step.local_task_count({"SLURM_STEP_TASKS_PER_NODE": count, "SLURM_NODEID": "0"})


@pytest.mark.row("--join-ct")
def test_sources_of_the_count_in_order() -> None:
    env = {"SLURM_CPUS_ON_NODE": "8"}
    assert step.local_task_count(env) == 8
    env |= {"SLURM_STEP_TASKS_PER_NODE": "4", "SLURM_NODEID": "0"}
    assert step.local_task_count(env) == 4
    env |= {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
    assert step.local_task_count(env) == 2
    with pytest.raises(UsageError, match="--join-ct: required outside Slurm"):
        step.local_task_count({})
    with pytest.raises(UsageError, match="SLURM_NODEID: not set"):
        step.local_task_count({"SLURM_STEP_TASKS_PER_NODE": "4"})


@given(st.lists(st.tuples(st.integers(1, 64), st.integers(1, 20)), min_size=1, max_size=20))
def test_every_list_that_slurm_could_write(items: list[tuple[int, int]]) -> None:
    text = ",".join(f"{count}(x{repeat})" if repeat > 1 else str(count) for count, repeat in items)
    flat = [count for count, repeat in items for _ in range(repeat)]
    for node in {0, len(flat) // 2, len(flat) - 1}:
        assert step.local_task_count({"SLURM_STEP_TASKS_PER_NODE": text, "SLURM_NODEID": str(node)}) == flat[node]


@given(st.text(max_size=40), st.text(max_size=10))
def test_nothing_makes_another_error(text: str, node: str) -> None:
    env = {"SLURM_STEP_TASKS_PER_NODE": text, "SLURM_NODEID": node, "SLURM_JOB_ID": text, "SLURM_STEP_ID": node}
    for function in (step.local_task_count, step.tag):
        try:
            function(env)
        except UsageError:
            pass


def test_task_name() -> None:
    assert step.task_name({"SLURM_PROCID": "3"}) == "task 3"
    assert step.task_name({"OMPI_COMM_WORLD_RANK": "2"}) == "task 2"
    assert step.task_name({}) == "peer"
