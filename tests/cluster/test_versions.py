# SPDX-License-Identifier: Apache-2.0
"""A plugin that was built for another Slurm release says so, and names both."""

from __future__ import annotations

from pathlib import Path

import pytest

from slurm_ch.sandbox.cluster import Cluster

from .conftest import Run


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
    done = sh("srun --ch-image=$IMG true")
    assert (done.returncode, done.stderr) == (0, "")
