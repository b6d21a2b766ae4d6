# SPDX-License-Identifier: Apache-2.0
"""docs/recipes.rst: each marked block runs as it stands there, with stand-ins for the programs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from slurm_ch.sandbox.cluster import Cluster
from tests import documented, small_images
from tests.command import SBATCH_WAIT

ROOT = Path(__file__).parents[2]
BLOCKS = documented.blocks("docs/recipes.rst", "run")

PROGRAMS = {
    "bash": 'exec /bin/sh "$@"',
    "mpi-program": 'echo "rank $PMI_RANK of $PMI_SIZE on $SLURMD_NODENAME"',
    "train": 'echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT in $(cat /marker)"',
    "torchrun": 'echo "torchrun $*"',
    "jupyter": 'echo "jupyter $*, home $HOME"',
    # `-m venv DIR` makes a python that runs `-c`, as far as the recipe goes.
    "python3": 'test "$2" = venv && mkdir -p "$3/bin" && cp "$0" "$3/bin/python" || echo "python $*"',
}


@pytest.fixture(scope="module")
def app(world_tmp: Path) -> Path:
    """An image that has a stand-in for each program."""
    root = small_images.make_image(world_tmp / "recipes", "an image")
    for name, text in PROGRAMS.items():
        program = root / "bin" / name
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    (root / "ch").mkdir()
    (root / "ch/environment").write_text("BUILT_WITH=ch-image\n")
    return root


@pytest.fixture
def recipe(cluster: Cluster, user: str, app: Path, world_tmp: Path) -> Callable[[str], str]:
    """Run a block by its name, in a directory of the user's with the image in it; return what it prints."""
    where = world_tmp / "user"
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir()
    small_images.squash(app, where / "app.sqfs")
    shutil.copytree(app, where / "image", symlinks=True)
    subprocess.run(["chown", "-hR", f"{user}:", str(where)], check=True)
    bin_dir = ROOT / ".venv/bin"
    env = {**cluster.environ(user), "PATH": f"{where}/tools:/usr/bin:/bin"}
    tools = where / "tools"
    tools.mkdir()
    # `make install CH_RUN=1` makes one of those.
    (tools / "ch-run").write_text(
        f"#!{bin_dir}/python\nfrom slurm_ch.cli.main import ch_run\nch_run()\n",
    )
    (tools / "ch-run").chmod(0o755)

    def run(name: str) -> str:
        script = where / f"run-{name}"
        script.write_text(BLOCKS[name])
        script.chmod(0o755)
        batch = script.read_text().startswith("#!")
        command = [SBATCH_WAIT, "--overcommit", "-o", "out", f"./run-{name}"] if batch else ["sh", "-e", f"run-{name}"]
        done = cluster.run(command, user=user, timeout=120, env=env, cwd=str(where))
        out = where / "out"
        said = ("" if batch else done.stdout) + (out.read_text() if out.exists() else "")
        assert (done.returncode, done.stderr) == (0, ""), (done, said)
        return said + "".join(path.read_text() for path in sorted(where.glob("*.log")))

    return run


def test_every_block_is_tried() -> None:
    assert set(BLOCKS) == {"mpi", "pytorch", "torchrun", "jupyter", "venv", "ch-run", "submitit"}


def test_mpi(recipe: Callable[[str], str]) -> None:
    lines = recipe("mpi").splitlines()
    assert sorted(line.split(" on ")[0] for line in lines) == [f"rank {n} of 4" for n in range(4)]
    assert {line.split(" on ")[1] for line in lines} == {"n1", "n2"}


def test_pytorch(recipe: Callable[[str], str]) -> None:
    lines = sorted(line.split() for line in recipe("pytorch").splitlines())
    assert [line[:3] for line in lines] == [["0", "0", "4"], ["1", "1", "4"], ["2", "0", "4"], ["3", "1", "4"]]
    assert {line[3] for line in lines} == {"n1"}
    assert {61000 <= int(line[4]) < 65536 for line in lines} == {True}


def test_torchrun(recipe: Callable[[str], str]) -> None:
    lines = recipe("torchrun").splitlines()
    assert len(lines) == 2
    assert re.fullmatch(
        r"torchrun --nnodes=2 --nproc-per-node=2 --rdzv-backend=c10d --rdzv-endpoint=n1:\d+ train.py", lines[0]
    )


def test_jupyter(recipe: Callable[[str], str]) -> None:
    said = recipe("jupyter")
    assert re.search(rf"jupyter lab --no-browser --ip={os.uname().nodename} --port=2\d{{4}}, home /\S+", said), said


def test_venv(recipe: Callable[[str], str]) -> None:
    assert recipe("venv") == 'python -c print("hello")\n'


def test_ch_run(recipe: Callable[[str], str], world_tmp: Path) -> None:
    assert recipe("ch-run") == f"in {world_tmp}/user\n"


def test_submitit(recipe: Callable[[str], str]) -> None:
    said = recipe("submitit")
    assert said.count("in an image\n") == 2
