# SPDX-License-Identifier: Apache-2.0
"""One srun of several components, each with an image and options of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm_ch.sandbox.cluster import Cluster

On = Callable[..., "subprocess.CompletedProcess[str]"]

SHOW = "sh -c 'echo $SLURM_PROCID $(cat /marker) $V'"
ONE, TWO = "--ch-image=$IMG", "--ch-image=$OTHER"


@pytest.fixture(scope="module")
def on(user: str, image_sqfs: Path, other_sqfs: Path) -> Iterator[On]:
    """Run a line on a cluster of three nodes: each part of a job wants one of its own."""
    with Cluster(nodes=3) as own:

        def run(line: str) -> subprocess.CompletedProcess[str]:
            env = {**own.environ(user), "IMG": str(image_sqfs), "OTHER": str(other_sqfs)}
            done = own.run(["bash", "-c", line], user=user, env=env, cwd="/")
            assert set(own.node_states().values()) <= {"idle", "completing", "planned"}
            return done

        yield run


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        # An allocation of its own: each component is a job.
        (f"srun -n1 {ONE} {SHOW} : -n2 --overcommit {TWO} {SHOW}", ["0 one", "1 two", "2 two"]),
        (f"srun -n1 {ONE} {SHOW} : -n1 --ch-image=/ {SHOW}", ["0 one", "1"]),
        (f"srun -n1 {ONE} : -n1 {TWO} {SHOW}", ["0 one", "1 two"]),
        # One that names an image has its own options; the others go on with what is to their left.
        (
            f"srun -n1 {ONE} --ch-set-env=V=v {SHOW} : -n1 {SHOW} : -n1 {TWO} {SHOW}",
            ["0 one v", "1 one v", "2 two"],
        ),
        (f"srun -n1 {ONE} {SHOW} : -n1 --ch-set-env=V=v {SHOW}", ["0 one", "1 one v"]),
        # What is left of the first image has it too: nothing runs on the host unasked.
        (f"srun -n1 {SHOW} : -n1 {TWO} {SHOW}", ["0 two", "1 two"]),
        (f"SLURM_CH_IMAGE=$IMG srun -n1 {SHOW} : -n1 {TWO} {SHOW}", ["0 one", "1 two"]),
        # Parts of a job of several, by their numbers.
        (
            f"salloc -Q -n1 : -n1 : -n1 srun --het-group=2 {ONE} {SHOW} : --het-group 1 {TWO} {SHOW}",
            ["0 two", "1 one"],
        ),
        (
            f"salloc -Q -n1 : -n1 : -n1 srun --het-g=0,2 {ONE} {SHOW} : --het-group=1 {TWO} {SHOW}",
            ["0 one", "1 two", "2 one"],
        ),
        (f"salloc -Q {ONE} -n1 : -n1 srun --het-group=0 {SHOW} : --het-group=1 {TWO} {SHOW}", ["0 one", "1 two"]),
    ],
)  # fmt: skip
def test_each_component_has_its_own(on: On, line: str, shown: list[str]) -> None:
    done = on(line)
    assert done.returncode == 0, done
    assert sorted(said.strip() for said in done.stdout.splitlines()) == shown


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (f"salloc -Q -N2 -n2 srun -N1 -n1 {ONE} {SHOW} : -N1 -n1 {TWO} {SHOW}", ["0 one", "1 two"]),
        (
            f"salloc -Q -N2 -n2 srun -N1 -n1 --het-group=1 {ONE} {SHOW} : --het-group=0 -N1 -n1 {TWO} {SHOW}",
            ["0 two", "1 one"],
        ),
    ],
)  # fmt: skip
def test_components_of_a_step_in_one_job(on: On, line: str, shown: list[str]) -> None:
    test_each_component_has_its_own(on, line, shown)


def test_what_is_wrong_in_one_is_said_before_it_queues(on: On) -> None:
    done = on(f"srun {ONE} true : {TWO} --ch-uid=x true")
    assert (done.returncode, done.stdout) == (64, "")
    assert "--ch-uid=x" in done.stderr


@pytest.mark.parametrize("line", ["sbatch {} -n1 : -n1 {} --wrap=true", "salloc {} -n1 : -n1 {}"])
def test_a_script_and_a_shell_have_one_image(on: On, line: str) -> None:
    done = on(line.format(ONE, "--ch-image=/other"))
    assert (done.returncode, done.stdout) == (64, "")
    assert "--ch-image=/other: all components of one command have the same image" in done.stderr
