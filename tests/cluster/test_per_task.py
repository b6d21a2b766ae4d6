# SPDX-License-Identifier: Apache-2.0
"""What differs from task to task still does in the container."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm_ch.sandbox.cluster import Cluster

GPUS = 4

Lines = Callable[[str], list[list[str]]]


@pytest.fixture(scope="module")
def lines(world_tmp: Path, user: str, image_sqfs: Path) -> Iterator[Lines]:
    """Run a line on two nodes with GPUs and CPU binding; return the words of what it prints, sorted."""
    for number in range(GPUS):
        os.mknod(world_tmp / f"gpu{number}", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    gres = f"AutoDetect=off\nNodeName=n[1-2] Name=gpu File={world_tmp}/gpu[0-{GPUS - 1}]\n"
    extra = "GresTypes=gpu\nTaskPlugin=task/affinity\n"
    with Cluster(
        nodes=2, cpus=4, slurm_conf_extra=extra, node_conf=f"Gres=gpu:{GPUS}", files={"gres.conf": gres}
    ) as own:

        def run(line: str) -> list[list[str]]:
            env = {**own.environ(user), "IMG": str(image_sqfs)}
            done = own.run(["bash", "-c", line], user=user, env=env)
            assert done.returncode == 0, done
            return sorted(line.split() for line in done.stdout.splitlines())

        yield run


SHOW = "--ch-image=$IMG sh -c 'echo $SLURM_PROCID $SLURM_LOCALID $SLURM_NODEID {}'"


def test_ranks(lines: Lines) -> None:
    tasks = lines(f"srun -N2 -n8 --cpu-bind=none {SHOW.format('$SLURM_TASK_PID')}")
    assert [task[:3] for task in tasks] == [[str(n), str(n % 4), str(n // 4)] for n in range(8)]
    assert len({task[3] for task in tasks}) == 8


@pytest.mark.parametrize("how", ["--gpus-per-task=1", "--gpus-per-node=4 --gpu-bind=single:1"])
def test_each_task_sees_its_own_gpu(lines: Lines, how: str) -> None:
    bare = lines(
        f"srun -N2 -n8 --cpu-bind=none {how} sh -c 'echo $SLURM_PROCID $SLURM_LOCALID $SLURM_NODEID $CUDA_VISIBLE_DEVICES'"
    )
    tasks = lines(f"srun -N2 -n8 --cpu-bind=none {how} {SHOW.format('$CUDA_VISIBLE_DEVICES')}")
    assert tasks == bare
    assert len({(node, gpu) for _, _, node, gpu in tasks}) == 8


def test_gpus_of_a_node_are_the_same_for_its_tasks(lines: Lines) -> None:
    tasks = lines(f"srun -N2 -n4 --ntasks-per-node=2 --gpus-per-node=3 {SHOW.format('$CUDA_VISIBLE_DEVICES')}")
    assert {task[3] for task in tasks} == {"0,1,2"}


def test_pmi_ranks(lines: Lines) -> None:
    tasks = lines(f"srun -N2 -n8 --cpu-bind=none --mpi=pmi2 {SHOW.format('$PMI_RANK $PMI_SIZE $PMI_FD')}")
    assert [(task[0], task[3], task[4]) for task in tasks] == [(str(n), str(n), "8") for n in range(8)]
    assert len({(task[2], task[5]) for task in tasks}) == 8


def allowed(text: str) -> set[int]:
    """Return the CPUs of a list like 0,2-3."""
    ranges = [part.split("-") for part in text.split(",")]
    return {cpu for first in ranges for cpu in range(int(first[0]), int(first[-1]) + 1)}


CPUS = "$(sed -n s/Cpus_allowed_list:.//p /proc/self/status)"


@pytest.mark.parametrize("how", ["--cpu-bind=map_cpu:1,0", "--cpu-bind=mask_cpu:2,1", "--cpu-bind=cores"])
def test_each_task_is_bound_as_without_a_container(lines: Lines, how: str) -> None:
    bare = lines(f"srun -N1 -w n1 -n2 {how} sh -c 'echo $SLURM_PROCID $SLURM_LOCALID $SLURM_NODEID {CPUS}'")
    tasks = lines(f"srun -N1 -w n1 -n2 {how} {SHOW.format(CPUS)}")
    assert tasks == bare
    if "map" in how or "mask" in how:
        assert [allowed(task[3]) for task in tasks] == [{1}, {0}]


@pytest.mark.parametrize(
    ("how", "per_node"),
    [("-N2 --ntasks-per-node=3", [3, 3]), ("-n5 -m arbitrary -w {}", [2, 3]), ("-N2 -n5 -m cyclic", [3, 2])],
)
def test_any_distribution(lines: Lines, world_tmp: Path, how: str, per_node: list[int]) -> None:
    hosts = world_tmp / "hosts"
    hosts.write_text("n1\nn2\nn2\nn1\nn2\n")
    tasks = lines(f"srun --overcommit {how.format(hosts)} {SHOW.format('$(readlink /proc/self/ns/mnt)')}")
    assert [task[0] for task in tasks] == [str(n) for n in range(sum(per_node))]
    for node, count in enumerate(per_node):
        here = [task for task in tasks if task[2] == str(node)]
        assert sorted(task[1] for task in here) == [str(n) for n in range(count)]
        assert len({task[3] for task in here}) == 1


def test_multi_prog(good: Callable[..., str], world_tmp: Path) -> None:
    """Each task its own command, of all nodes."""
    conf = world_tmp / "commands.conf"
    conf.write_text("0 /bin/echo zero %t\n1-2 /bin/echo some %o\n3 /bin/cat /marker\n")
    out = good(f"srun -N2 --overcommit -n4 --ch-image=$IMG --multi-prog {conf}")
    assert sorted(out.splitlines()) == ["one", "some 0", "some 1", "zero 0"]
