# SPDX-License-Identifier: Apache-2.0
"""Two nodes of a site that has pyxis' options, and an image as enroot leaves it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm_ch import paths
from slurm_ch.sandbox.cluster import Cluster
from tests.command import WITH_SBATCH_WAIT
from tests.small_images import make_image, squash

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Good = Callable[..., str]

WAITING = re.compile(r"^srun: job \d+ (queued and waiting for|has been allocated) resources\n", re.MULTILINE)

# What `enroot import` leaves of an image with ENV, WORKDIR, ENTRYPOINT and CMD.
ENVIRONMENT = """\
PATH=/opt/app/bin:/bin
FOO=image
LANG=C.UTF-8
PYTORCH_VERSION=2.1
ONLY_HERE=a b"c
CUDA_VISIBLE_DEVICES=all
"""
RC = """\
mkdir -p "/workspace" 2> /dev/null
cd "/workspace" && unset OLDPWD || exit 1

if [ -s /etc/rc.local ]; then
    . /etc/rc.local
fi

if [ $# -gt 0 ]; then
    exec '/opt/app/bin/entry' "$@"
else
    exec '/opt/app/bin/entry' 'sh'
fi
"""


@pytest.fixture(scope="package")
def enroots(world_tmp: Path) -> Path:
    """A SquashFS file as `enroot import` makes it."""
    root = make_image(world_tmp / "enroots", "enroot's")
    (root / "etc/environment").write_text(ENVIRONMENT)
    (root / "etc/rc").write_text(RC)
    (root / "etc/rc.local").touch()
    (root / "etc/fstab").touch()
    (root / "workspace").mkdir()
    (root / "opt/app/bin").mkdir(parents=True)
    (root / "opt/app/bin/entry").write_text(
        '#!/bin/sh\necho entrypoint\nexport BY_ENTRY=yes FOO="$FOO+entry" SLURM_PROCID=9\ncd /opt\nexec "$@"\n'
    )
    for name in ("bin/bash", "opt/app/bin/bash"):
        (root / name).write_text('#!/bin/sh\nexec /bin/sh "$@"\n')
        (root / name).chmod(0o755)
    for name in ("python3", "torchrun"):
        (root / "opt/app/bin" / name).write_text(
            '#!/bin/sh\necho "${0##*/} $* rank=$RANK/$WORLD_SIZE local=$LOCAL_RANK at=$MASTER_ADDR:$MASTER_PORT in $PWD"\n'
        )
    for one in (root / "opt/app/bin").iterdir():
        one.chmod(0o755)
    (root / "tmp").chmod(0o1777)
    return squash(root, world_tmp / "nvidia+pytorch+24.01.sqsh")


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    """Two nodes of a site that has pyxis' options."""
    with Cluster(nodes=2, cpus=8, plugstack_lines=[f"required {paths.PLUGIN} pyxis=yes"]) as running:
        yield running


@pytest.fixture(scope="package")
def work(user: str, world_tmp: Path) -> Path:
    """A directory of the user's, shared by the nodes."""
    path = world_tmp / "project"
    path.mkdir()
    shutil.chown(path, user)
    return path


@pytest.fixture
def sh(cluster: Cluster, user: str, enroots: Path, work: Path) -> Run:
    def run(line: str) -> subprocess.CompletedProcess[str]:
        env = {**cluster.environ(user), "IMG": str(enroots), "PATH": "/usr/bin:/bin", "LC_ALL": "POSIX", "FOO": "job"}
        done = cluster.run(["bash", "-c", f"{WITH_SBATCH_WAIT}cd {work}; {line}"], user=user, timeout=60, env=env)
        # What the job before may still have of a node.
        done.stderr = WAITING.sub("", done.stderr)
        return done

    return run


@pytest.fixture
def good(sh: Run) -> Good:
    def run(line: str) -> str:
        done = sh(line)
        assert (done.returncode, done.stderr) == (0, ""), (done.stdout, done.stderr)
        return done.stdout

    return run
