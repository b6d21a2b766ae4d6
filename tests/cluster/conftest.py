# SPDX-License-Identifier: Apache-2.0
"""A cluster for the session, on which no test may leave anything."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm_ch import paths
from slurm_ch.sandbox.cluster import Cluster
from tests import leftovers
from tests.command import WITH_SBATCH_WAIT

Run = Callable[..., "subprocess.CompletedProcess[str]"]

ROOT = Path(__file__).parents[2]

OTHER = """\
#define _GNU_SOURCE
#include <slurm/slurm.h>
#undef SLURM_VERSION_NUMBER
#define SLURM_VERSION_NUMBER SLURM_VERSION_NUM(23, 11, 4)
"""

# Enough for a busy machine; a hang ends here.
TIMEOUT = 60


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes with the checkout's plugin and no site arguments."""
    assert Path(paths.PLUGIN).exists(), "make build"
    with Cluster(nodes=2, cpus=8) as running:
        yield running


@pytest.fixture
def sh(cluster: Cluster, user: str, image_sqfs: Path) -> Iterator[Run]:
    """Run a line of shell as the user, IMG being the image; afterwards all must be as it was."""
    assert cluster._supervisor is not None
    before = leftovers.Snapshot(cluster._supervisor.pid)

    def run(line: str, timeout: float = TIMEOUT, **kw: object) -> subprocess.CompletedProcess[str]:
        env = {**cluster.environ(user), "IMG": str(image_sqfs), "PATH": "/usr/bin:/bin"}
        return cluster.run(["bash", "-c", WITH_SBATCH_WAIT + line], user=user, timeout=timeout, **{"env": env, **kw})

    yield run
    try:
        before.wait_until_clean()
        assert set(cluster.node_states().values()) <= {"idle", "completing", "planned"}
    except AssertionError:
        # One failure, not one of each test that comes after it.
        cluster.run(["scancel", f"--user={user}"], user="root")
        raise


@pytest.fixture
def good(sh: Run) -> Callable[..., str]:
    """Run a line that must succeed, and return what it printed."""

    def run(line: str, **kw: object) -> str:
        done = sh(line, **kw)
        assert done.returncode == 0, (done.stdout, done.stderr)
        return done.stdout

    return run


@pytest.fixture(scope="session")
def foreign(world_tmp: Path) -> Path:
    """The plugin as built against another release's headers."""
    out = world_tmp / "foreign"
    header = world_tmp / "other-release.h"
    header.write_text(OTHER)
    make = ["make", "-C", str(ROOT / "spank"), f"OUT={out}", f"SLURM_CFLAGS=-include {header}", f"{out}/slurm_ch.so"]
    subprocess.run(make, check=True, capture_output=True)
    return out / "slurm_ch.so"
