# SPDX-License-Identifier: Apache-2.0
"""The image's own environment in steps: before the user's rules, and never in the place of what is a task's own."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.small_images import squash

from .conftest import Run

Good = Callable[..., str]


@pytest.fixture
def own(world_tmp: Path, image_dir: Path) -> Iterator[Path]:
    """An image as `slurm-ch pull` makes it."""
    directory, packed = world_tmp / "environment", world_tmp / "environment.sqfs"
    subprocess.run(["cp", "-a", image_dir, directory], check=True)
    (directory / "ch").mkdir()
    (directory / "ch/environment0").write_text(
        "A=image $x\0PER_TASK=image\0C=image\0SLURM_PROCID=image\0CUDA_VISIBLE_DEVICES=all\0"
    )
    (directory / "ch/metadata.json").write_text('{\n  "cwd": "/srv"\n}\n')
    yield squash(directory, packed)
    subprocess.run(["rm", "-rf", directory, packed], check=True)


def test_what_counts_in_a_task(good: Good, own: Path, world_tmp: Path) -> None:
    prolog = world_tmp / "environment-prolog"
    prolog.write_text('#!/bin/sh\necho "export PER_TASK=$SLURM_PROCID"\n')
    prolog.chmod(0o755)
    before = "export PER_TASK=step C=mine CUDA_VISIBLE_DEVICES=3;"
    step = f"srun -N2 -n4 --overcommit --ch-image={own}"
    show = "sh -c 'echo $A,$PER_TASK,$C,$CUDA_VISIBLE_DEVICES' | sort"
    assert good(f"{before} {step} {show}") == "image $x,image,image,3\n" * 4
    assert good(f"{before} unset C; {step} --task-prolog={prolog} --export=ALL,C=given {show}") == "".join(
        f"image $x,{rank},given,3\n" for rank in range(4)
    )
    assert good(f"{before} {step} --ch-set-env='A=${{A}}y' --ch-unset-env=C {show}") == "image $xy,image,,3\n" * 4
    for no in (f"{before} {step} --ch-image-env=no {show}", f"{before} SLURM_CH_IMAGE_ENV=no {step} {show}"):
        assert good(no) == ",step,mine,3\n" * 4
    assert good(f"{step} sh -c 'echo $SLURM_PROCID' | sort") == "0\n1\n2\n3\n"
    # By --export alone, and as a script's default for the steps inside.
    assert good(f"{step} --export PATH,C=given sh -c 'echo $C; env | grep CH_EXP'; true") == "given\n" * 4
    assert good(f"{before} SLURM_EXPORT_ENV=ALL,C {step} {show}") == "image $x,image,mine,3\n" * 4


def test_where_a_task_starts_whose_directory_is_lost(sh: Run, own: Path, user: str) -> None:
    lost = Path(tempfile.mkdtemp(prefix="slurm-ch-lost-", dir="/opt"))
    try:
        lost.chmod(0o755)
        done = sh(f"cd {lost}; srun --ch-image={own} pwd")
    finally:
        lost.rmdir()
    assert (done.returncode, done.stdout) == (0, "/srv\n")
    assert f"--ch-bind={lost} shows it; starting in /srv" in done.stderr


def test_a_file_that_apptainer_made(good: Good, apptainers: Path) -> None:
    assert good(f"srun -N2 --ch-image={apptainers} - you") == "hello from apptainer you\n" * 2
    assert good(f"srun --ch-image={apptainers} --ch-set-env=GREETING=ours --ch-write-fake -") == "ours\n"
    assert good(f"srun --ch-image={apptainers} --ch-write-fake /bin/greet + /made") == "/made"
