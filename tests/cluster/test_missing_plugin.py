# SPDX-License-Identifier: Apache-2.0
"""A node without the plugin, or with one of another version, never runs a command on the host."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm_ch import paths
from slurm_ch.sandbox.cluster import Cluster
from tests.command import WITH_SBATCH_WAIT

ROOT = Path(__file__).parents[2]

On = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def older(world_tmp: Path) -> Path:
    """A plugin that doesn't know the word that replaces the command."""
    out = world_tmp / "older"
    flags = "SLURM_CFLAGS=-DGUARD='\"/proc/other\"'"
    plugin = out / "slurm_ch.so"
    subprocess.run(["make", "-C", ROOT / "spank", f"OUT={out}", flags, plugin], check=True, capture_output=True)
    return plugin


@pytest.fixture(scope="module")
def odd(user: str, older: Path, image_sqfs: Path) -> Iterator[On]:
    """Run a line on a cluster where n2 has no plugin, and n3 an older one."""
    arguments = f"launcher={paths.LAUNCHER} ch_join={paths.CH_JOIN}"
    with Cluster(nodes=3, plugstack_of={"n2": [], "n3": [f"required {older} {arguments}"]}) as own:

        def run(line: str) -> subprocess.CompletedProcess[str]:
            env = {**own.environ(user), "IMG": str(image_sqfs)}
            done = own.run(["bash", "-c", line], user=user, env=env)
            assert set(own.node_states().values()) <= {"idle", "completing"}
            return done

        yield run


def test_srun_to_a_node_without_the_plugin(odd: On) -> None:
    done = odd("srun -w n2 --ch-image=$IMG sh -c 'echo on the host'")
    assert (done.returncode, done.stdout) == (2, "")
    # Newer ones have the time before it instead of the node.
    assert "error: execve(): /proc/no-slurm_ch-plugin-on-this-node,-or-an-older-one: " in done.stderr


def test_only_that_nodes_tasks_fail(odd: On) -> None:
    done = odd("srun -N2 -w n1,n2 --overcommit -n4 --ch-image=$IMG cat /marker")
    assert done.returncode == 2
    assert done.stdout == "one\n" * 2
    assert done.stderr.count("no-slurm_ch-plugin") == 2


def test_a_word_that_looks_like_multi_prog(odd: On) -> None:
    done = odd("srun -w n2 --ch-image=$IMG echo on the host --multi-prog")
    assert (done.returncode, done.stdout) == (2, "")


def test_srun_inside_an_allocation(odd: On) -> None:
    done = odd("salloc -Q -w n2 --ch-image=$IMG srun sh -c 'echo on the host'")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no-slurm_ch-plugin" in done.stderr


def test_a_plugin_that_does_not_know_the_word(odd: On) -> None:
    done = odd("srun -w n3 --ch-image=$IMG sh -c 'echo on the host'")
    assert (done.returncode, done.stdout) == (127, "")
    assert "slurm-ch: n3: error: can't execute /proc/no-slurm_ch-plugin-on-this-node,-or-an-older-one" in done.stderr


def test_the_guard_is_seen_by_nobody(odd: On) -> None:
    line = "squeue -h -s -u $USER -o %j; scontrol show step $SLURM_JOB_ID.0 | grep -c no-slurm_ch-plugin"
    done = odd(f"srun -w n1 --ch-image=$IMG --ch-relay sh -c '{line}; echo $0; env'")
    lines = done.stdout.splitlines()
    assert "sh" in lines[:2]
    assert "0" in lines
    assert "no-slurm_ch-plugin" not in done.stdout
    assert not [line for line in lines if line.startswith(("SLURM_CH_COMMAND=", "SLURM_CH_REQUEST=", "SLURM_CH_JOIN="))]


def test_without_an_image_nothing_is_guarded(odd: On) -> None:
    assert odd("srun -w n2 echo plain").stdout == "plain\n"


def test_the_task_prolog_guards_what_srun_alone_cannot(user: str, image_sqfs: Path, world_tmp: Path) -> None:
    conf = world_tmp / "multi.prog"
    conf.write_text("0 /bin/echo on the host\n")
    extra = f"TaskProlog={ROOT}/etc/task-prolog\nLaunchParameters=use_interactive_step"
    with Cluster(nodes=2, plugstack_of={"n2": []}, slurm_conf_extra=extra) as own:

        def run(line: str) -> subprocess.CompletedProcess[str]:
            return own.run(["bash", "-c", WITH_SBATCH_WAIT + line.replace("$IMG", str(image_sqfs))], user=user)

        sbatch = (
            "sbatch-wait -o $HOME/out.txt --ch-image=$IMG --wrap='{}' >&2; echo $?; cat $HOME/out.txt; rm $HOME/out.txt"
        )
        code, *lines = run(
            sbatch.format("echo on the host").replace("sbatch-wait", "sbatch-wait -w n2")
        ).stdout.splitlines()
        assert code != "0"
        assert "slurm_ch: the plugin is missing on this node; refusing to run on the host" in lines
        assert "on the host" not in lines
        done = run(f"srun -w n2 --ch-image=$IMG --multi-prog {conf}")
        assert done.returncode != 0
        assert "the plugin is missing on this node" in done.stdout
        assert "on the host\n" not in done.stdout.replace("refusing to run on the host", "")
        # Slurm lets a plugin guard the command of one component only, whichever it likes.
        done = run("srun -w n1 --ch-image=$IMG true : -w n2 --ch-image=/ sh -c 'echo on the host'")
        assert done.returncode != 0
        assert "on the host\n" not in done.stdout.replace("refusing to run on the host", "")
        # With the plugin, or without an image, it lets everything pass.
        assert run(sbatch.format("cat /marker").replace("sbatch-wait", "sbatch-wait -w n1")).stdout == "0\none\n"
        assert run("srun -w n2 echo plain").stdout == "plain\n"
        assert run("srun -w n1 --ch-image=$IMG cat /marker").stdout == "one\n"
        # salloc's shell, a step on the node, stays on the host; its steps do not.
        shell = "echo 'echo on $SLURMD_NODENAME; srun cat /marker; exit' | SHELL=/bin/sh script -qec 'salloc -Q -w n1 --ch-image=$IMG' /dev/null"
        said = [line.removeprefix("$ ") for line in run(shell).stdout.replace("\r", "").splitlines()]
        assert {"on n1", "one"} <= set(said)
        assert set(own.node_states().values()) <= {"idle", "completing", "planned"}
