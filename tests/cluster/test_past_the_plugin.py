# SPDX-License-Identifier: Apache-2.0
"""Scripts with #SBATCH --ch-image lines that are submitted by programs which don't read such lines."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from .conftest import Run

WAIT = """
d=$(mktemp -d)
id=$({submit} {script} $d/out) || exit
while squeue -h -j $id 2> /dev/null | grep -q .; do sleep 0.02; done
scontrol show job $id | grep -o 'JobState=[A-Z]*'
cat $d/out
rm -r $d
"""


@pytest.fixture(scope="module")
def submit(world_tmp: Path) -> Path:
    """A program that submits a script as slurmrestd and pyslurm do."""
    to = world_tmp / "submit"
    source = Path(__file__).with_name("submit.c")
    subprocess.run(["cc", "-Wall", "-Wextra", "-Werror", "-o", to, source, "-lslurm"], check=True, capture_output=True)
    return to


def test_it_does_not_run_on_the_host(sh: Run, submit: Path, world_tmp: Path) -> None:
    script = world_tmp / "past.sh"
    script.write_text("#!/bin/sh\n#SBATCH -J x\n#SBATCH -N1 --ch-image=/images/foo.sqfs\necho on the host\n")
    done = sh(WAIT.format(submit=submit, script=script))
    state, *lines = done.stdout.splitlines()
    assert state == "JobState=FAILED"
    said = "slurm_ch: the script has #SBATCH --ch- lines, but was not submitted by an sbatch with this plugin; refusing to run it on the host"
    assert [line for line in lines if line.endswith(said)], done
    assert "on the host" not in lines


def test_a_script_without_such_lines_is_left_alone(sh: Run, submit: Path, world_tmp: Path) -> None:
    script = world_tmp / "plain.sh"
    script.write_text("#!/bin/sh\n#SBATCH -J x # --ch-image=no\n\necho on the host\n#SBATCH --ch-image=late\n")
    assert sh(WAIT.format(submit=submit, script=script)).stdout == "JobState=COMPLETED\non the host\n"
