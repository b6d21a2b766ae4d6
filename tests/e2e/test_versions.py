"""A plugin that was built for another Slurm release says so, and names both."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from slurm_ch.cluster import Cluster

from .conftest import Run

ROOT = Path(__file__).parents[2]

OTHER = """\
#include <slurm/slurm_version.h>
#undef SLURM_VERSION_NUMBER
#define SLURM_VERSION_NUMBER SLURM_VERSION_NUM(23, 11, 4)
"""


@pytest.fixture(scope="module")
def foreign(world_tmp: Path) -> Path:
    """The plugin as built against another release's headers."""
    out = world_tmp / "foreign"
    header = world_tmp / "other-release.h"
    header.write_text(OTHER)
    make = ["make", "-C", str(ROOT / "spank"), f"OUT={out}", f"SLURM_CFLAGS=-include {header}", f"{out}/slurm_ch.so"]
    subprocess.run(make, check=True, capture_output=True)
    return out / "slurm_ch.so"


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
