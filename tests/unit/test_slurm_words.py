# SPDX-License-Identifier: Apache-2.0
"""What can be found out from a command line of Slurm, and what can't."""

from __future__ import annotations

import pytest

from slurm_ch.plugin import slurm_words


@pytest.mark.parametrize(
    ("words", "env", "nodes"),
    [
        ("-N2 app", {}, 2),
        ("-N 2 app", {}, 2),
        ("--nodes=2-4 app", {}, 2),
        ("--nodes 3 app", {}, 3),
        ("-lvN2 app", {}, 2),
        ("-n4 -OQ --ch-image=x --ch-write-fake --ch-save f --mpi=none --exclusive -N4 app", {}, 4),
        ("-N4 -N1 app", {}, 1),
        ("-N1-4 app", {}, 1),
        ("-N4 -n2 app", {}, 2),  # srun leaves two of them out
        ("app", {}, None),
        ("app -N2", {}, None),
        ("-n1 app -N2", {}, None),
        ("-w n1 -K app -N2", {}, None),
        ("-- app -N2", {}, None),
        ("--new-in-27 app -N2", {}, None),  # does it have a value?
        ("-y app -N2", {}, None),
        ("-N2k app", {}, None),
        ("app", {"SLURM_JOB_NUM_NODES": "2"}, 2),
        ("app", {"SLURM_NNODES": "2", "SLURM_NTASKS": "1"}, 1),
        ("-N1 app", {"SLURM_JOB_NUM_NODES": "2"}, 1),
        ("-n1 app", {"SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "2"}, 1),
        ("-N", {}, None),
    ],
)
def test_the_nodes_of_a_step(words: str, env: dict[str, str], nodes: int | None) -> None:
    assert slurm_words.nodes_of_step(words.split(), env) == nodes


@pytest.mark.parametrize(
    ("words", "directives", "env", "several"),
    [
        ("-a1-3 job.sh", "", {}, True),
        ("--wait -Wa 1,5%2 job.sh", "", {}, True),
        ("--array=0-7:2 job.sh", "", {}, True),
        ("--array=3 job.sh", "", {}, False),
        ("--array=3%2 job.sh", "", {}, False),
        ("job.sh --array=1-3", "", {}, False),
        ("job.sh", "-n1 --array=1-3 --ch-save=x", {}, True),
        ("--array=3 job.sh", "--array=1-3", {}, False),
        ("job.sh", "", {"SBATCH_ARRAY_INX": "1-3"}, True),
        ("-n4 --wrap=app", "", {}, False),
    ],
)
def test_an_array(words: str, directives: str, env: dict[str, str], several: bool) -> None:
    assert slurm_words.is_array(words.split(), directives.split(), env) is several
