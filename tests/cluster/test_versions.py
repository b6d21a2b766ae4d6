# SPDX-License-Identifier: Apache-2.0
"""Upgrades: a plugin for another Slurm release says so; nodes of two versions; a new version below a running step."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm_ch import paths
from slurm_ch.sandbox.cluster import Cluster
from tests.command import WITH_SBATCH_WAIT

from .conftest import ROOT, TIMEOUT, Run


@pytest.mark.parametrize("command", ["srun --ch-image=$IMG true", "sbatch --wrap=true"])
def test_the_plugin_of_another_release(cluster: Cluster, sh: Run, world_tmp: Path, foreign: Path, command: str) -> None:
    plugstack = world_tmp / "foreign-plugstack.conf"
    plugstack.write_text(f"required {foreign}\n")
    conf = world_tmp / "foreign-slurm.conf"
    text = Path(cluster.conf).read_text()
    conf.write_text(text.replace(f"{cluster.directory}/plugstack.conf", str(plugstack)))
    done = sh(f"SLURM_CONF={conf} {command}")
    assert done.returncode != 0
    assert done.stdout == ""
    major, minor = cluster.version[:2]
    expected = f"this plugin was built for Slurm 23.11, and this is Slurm {major}.{minor:02}; build"
    assert [line for line in done.stderr.splitlines() if expected in line], done.stderr


def test_our_own_plugin_says_nothing(sh: Run) -> None:
    done = sh("srun -Q --ch-image=$IMG true")  # -Q: whether it waits is no matter here
    assert (done.returncode, done.stderr) == (0, "")


def installed(where: Path) -> Path:
    """Copy the package with its programs, as `make install` has it; return the plugin."""
    left_out = shutil.ignore_patterns("__pycache__", "sandbox", "cli", "doctor", "images")
    shutil.copytree(paths.PACKAGE, where / "slurm_ch", ignore=left_out)
    return where / "slurm_ch/native" / paths.PLUGIN_NAME


@pytest.fixture(scope="module")
def older(world_tmp: Path) -> Path:
    """The plugin of a version of before, with all its parts: it doesn't know --ch-userns."""
    where = world_tmp / "older"
    plugin = installed(where)
    shutil.copytree(ROOT / "spank", where / "spank")
    table = where / "slurm_ch/request/options.py"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(line for line in lines if 'Option("userns"' not in line))
    assert len(table.read_text().splitlines()) == len(lines) - 1
    parsers = where / "slurm_ch/request/parsers.py"
    parsers.write_text(parsers.read_text().replace('    "userns": _userns,\n', ""))
    subprocess.run(
        ["make", "-C", where / "spank", f"../slurm_ch/native/{paths.PLUGIN_NAME}"], check=True, capture_output=True
    )
    assert b"userns" not in plugin.read_bytes() and b"userns" in Path(paths.PLUGIN).read_bytes()
    return plugin


@pytest.fixture(scope="module")
def mixed(user: str, older: Path, image_sqfs: Path) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Run a line on a cluster whose n2 has the older version; OLD is a slurm.conf for a submission host that has it."""
    with Cluster(nodes=2, plugstack_of={"n2": [f"required {older}"]}) as own:
        directory = Path(own.directory)
        (directory / "old-plugstack.conf").write_text(f"required {older}\n")
        conf = Path(own.conf).read_text().replace(f"{directory}/plugstack.conf", f"{directory}/old-plugstack.conf")
        (directory / "old-slurm.conf").write_text(conf)
        env = {**own.environ(user), "IMG": str(image_sqfs), "OLD": f"{directory}/old-slurm.conf"}

        def run(line: str) -> subprocess.CompletedProcess[str]:
            done = own.run(["bash", "-c", WITH_SBATCH_WAIT + line], user=user, env=env)
            assert set(own.node_states().values()) <= {"idle", "completing"}
            return done

        yield run


@pytest.mark.parametrize("conf", ["", "SLURM_CONF=$OLD "])
def test_nodes_of_two_versions_run_what_both_know(
    mixed: Callable[..., subprocess.CompletedProcess[str]], conf: str
) -> None:
    asked = "--ch-image=$IMG --ch-set-env=A=1 --ch-write-fake --ch-bind=/usr:/mnt"
    done = mixed(f"{conf}srun -N2 -n4 --overcommit {asked} sh -c 'echo $A $(cat /marker)'")
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 one\n" * 4, "")
    done = mixed(
        f"{conf}sbatch-wait -w n2 -o $HOME/both.txt {asked} --wrap 'cat /marker; srun -N1 cat /marker' > /dev/null; cat $HOME/both.txt; rm $HOME/both.txt"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "one\none\n", "")


def test_what_the_older_node_does_not_know_fails_there(mixed: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    asked = "--ch-image=$IMG --ch-userns cat /marker"
    assert mixed(f"srun -w n1 {asked}").stdout == "one\n"
    done = mixed(f"srun -w n2 {asked}")
    assert (done.returncode, done.stdout) == (64, "")
    assert "slurm-ch: n2: error: --ch-userns: this node's slurm_ch doesn't know the option\n" in done.stderr
    # Where it isn't known at submission, Slurm refuses it by itself.
    done = mixed(f"SLURM_CONF=$OLD srun -w n1 {asked}")
    assert done.returncode != 0
    assert "unrecognized option" in done.stderr


def test_a_new_version_below_a_running_step(user: str, world_tmp: Path, image_sqfs: Path) -> None:
    """As make install does it: the directory of the new one takes the old one's name."""
    current, new = world_tmp / "current", world_tmp / "new"
    plugin = installed(current)
    installed(new)
    (new / "slurm_ch/__init__.py").write_text((new / "slurm_ch/__init__.py").read_text() + "# newer\n")
    fifo = world_tmp / "wait"
    os.mkfifo(fifo)
    fifo.chmod(0o666)
    with Cluster(nodes=1, plugstack_lines=[f"required {plugin}"]) as own:
        step = ["srun", "--overlap", f"--ch-image={image_sqfs}"]
        running = own.popen(
            [*step, "sh", "-c", f"echo up; read x < {fifo}; cat /marker"],
            user=user, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert running.stdout is not None
        assert running.stdout.readline() == "up\n"
        current.rename(world_tmp / "current.old")
        new.rename(current)
        done = own.run([*step, "cat", "/marker"], user=user)
        assert (done.returncode, done.stdout, done.stderr) == (0, "one\n", "")
        shutil.rmtree(world_tmp / "current.old")
        fifo.write_text("go on\n")
        assert running.communicate(timeout=TIMEOUT)[0] == "one\n"
        assert running.returncode == 0
