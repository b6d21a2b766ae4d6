# SPDX-License-Identifier: Apache-2.0
"""SlurmdParameters=contain_spank (24.05 and later): parts of the plugin run beside slurmstepd, not in it.

Older releases don't know the word, and ignore it: there this is one more cluster.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm_ch import paths
from slurm_ch.sandbox.cluster import Cluster
from tests import leftovers
from tests.command import WITH_SBATCH_WAIT

On = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def contained(user: str, image_sqfs: Path) -> Iterator[On]:
    """Run a line on a cluster whose nodes contain spank, n2 with an interpreter that dies; nothing may be left."""
    dying = [f"required {paths.PLUGIN} python=/bin/false"]
    extra = "SlurmdParameters=config_overrides,contain_spank"  # the last line counts
    with Cluster(nodes=2, cpus=8, plugstack_of={"n2": dying}, slurm_conf_extra=extra) as own:
        assert own._supervisor is not None

        def run(line: str) -> subprocess.CompletedProcess[str]:
            before = leftovers.Snapshot(own._supervisor.pid)
            env = {**own.environ(user), "IMG": str(image_sqfs)}
            done = own.run(["bash", "-c", WITH_SBATCH_WAIT + line], user=user, env=env)
            before.wait_until_clean()
            assert set(own.node_states().values()) <= {"idle", "completing"}
            return done

        yield run


def test_one_container_for_all_tasks(contained: On) -> None:
    done = contained("srun -w n1 -n8 --ch-image=$IMG sh -c 'cat /marker; readlink /proc/self/ns/mnt' | sort | uniq -c")
    assert (done.returncode, done.stderr) == (0, "")
    namespace, marker = done.stdout.split("\n")[:2]
    assert (marker.split(), namespace.split()[0]) == (["8", "one"], "8")


def test_a_batch_script_and_its_steps(contained: On) -> None:
    script = "cat /marker; srun -n2 cat /marker"
    line = (
        f"sbatch-wait -w n1 -n2 -o $HOME/c.txt --ch-image=$IMG --wrap='{script}' >&2; cat $HOME/c.txt; rm $HOME/c.txt"
    )
    assert contained(line).stdout == "one\n" * 3


def test_a_launcher_that_dies_is_noticed_by_all(contained: On) -> None:
    done = contained("srun -w n2 -n4 --ch-image=$IMG cat /marker")
    assert (done.returncode, done.stdout) == (33, "")
    assert done.stderr.count("the launcher died before the container was ready") == 1


def test_a_step_on_the_host_is_left_alone(contained: On) -> None:
    assert contained("srun -w n1 -n2 echo host").stdout == "host\n" * 2
