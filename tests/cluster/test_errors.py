# SPDX-License-Identifier: Apache-2.0
"""Every error gets one clear message with the node's name, and leaves nothing."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from slurm_ch import paths
from slurm_ch.sandbox.cluster import Cluster

from .conftest import Run

CASES = [
    ("--ch-image=/nonexistent", 31, "can't stat image: /nonexistent: No such file or directory"),
    ("--ch-image=/etc/passwd", 31, "unknown image type: /etc/passwd"),
    ("--ch-image=/etc/shadow", 31, "can't open image: /etc/shadow: Permission denied"),
    ("--ch-image=$BROKEN", 31, "can't read image: "),
    ("--ch-image=$IMG --ch-bind=/nonexistent:/mnt", 31, "--ch-bind=/nonexistent:/mnt: can't bind: source not found: /nonexistent"),
    ("--ch-image=$IMG --ch-bind=/usr:/tmp/no/where", 31, "--ch-bind=/usr:/tmp/no/where: can't bind: /tmp/no/where: /tmp is bound from the host; nothing is created there"),
    ("--ch-image=$IMG --ch-bind=/usr:/../../mnt", 31, "not subdirectory of the image's root"),
    ("--ch-image=$ESCAPE --ch-bind=/usr:/out/mnt", 31, "not subdirectory of the image's root"),
    ("--ch-image=$IMG --ch-bind=/usr:mnt", 64, "the destination is not absolute: mnt"),
    ("--ch-image=$IMG --ch-bind=/etc/passwd:/mnt", 31, "one is a directory, the other is not"),
    ("--ch-image=$IMG --ch-write-fake=banana", 64, "--ch-write-fake=banana: not a size"),
    ("--ch-image=$IMG --ch-write --ch-write-fake", 64, "contradicts --ch-write-fake"),
    ("--ch-image=$IMG --ch-private-tmp=maybe", 64, "--ch-private-tmp=maybe: neither yes nor no"),
    ("--ch-image=$IMG --ch-cd=/nonexistent", 31, "can't cd to /nonexistent: No such file or directory"),
    ("--ch-image=$IMG --ch-set-env=/nonexistent", 31, "--ch-set-env=/nonexistent: can't read environment file"),
]  # fmt: skip


@pytest.fixture(scope="module")
def odd_images(world_tmp: Path) -> dict[str, str]:
    broken = world_tmp / "broken.sqfs"
    broken.write_bytes(b"hsqs" + b"\0" * 4096)
    escape = world_tmp / "escape"
    for name in ("dev", "proc", "sys", "tmp", "etc", "bin", "usr"):
        (escape / name).mkdir(parents=True)
    (escape / "etc/passwd").touch()
    (escape / "etc/group").touch()
    (escape / "out").symlink_to("../../..")
    return {"BROKEN": str(broken), "ESCAPE": str(escape)}


@pytest.mark.parametrize(("options", "code", "message"), CASES)
def test_one_clear_line(sh: Run, odd_images: dict[str, str], options: str, code: int, message: str) -> None:
    for name, value in odd_images.items():
        options = options.replace(f"${name}", value)
    done = sh(f"srun -N1 --overcommit -n4 -w n1 {options} sh -c 'echo on the host'")
    assert done.returncode == code, done
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("srun: ")]
    # What only a task can find out (its directory, its command), each task says.
    allowed = 4 if "cd to" in message else 1
    assert len(lines) == allowed, lines
    # From where it was submitted, if that can be known there, else from the node.
    assert lines[0].startswith(("slurm-ch: error: ", "slurm-ch: n1: error: ")), lines
    assert message in lines[0]


def test_command_that_is_not_there(sh: Run) -> None:
    done = sh("srun --ch-image=$IMG /usr/bin/python3 -V")
    assert done.returncode == 127
    assert "slurm-ch: n1: error: can't execute /usr/bin/python3: No such file or directory" in done.stderr


def test_command_that_is_no_program(sh: Run) -> None:
    done = sh("srun --ch-image=$IMG /etc")
    assert done.returncode == 126
    assert "can't execute /etc: Permission denied" in done.stderr


@pytest.mark.parametrize("command", ["srun", "sbatch --wrap=true", "salloc"])
def test_an_option_without_an_image_is_refused_at_submission(sh: Run, command: str) -> None:
    done = sh(f"{command} --ch-private-tmp {'' if 'sbatch' in command else 'true'}")
    assert done.returncode == 64
    assert "--ch-private-tmp: --ch-image is missing" in done.stderr


@pytest.mark.parametrize("command", ["srun", "sbatch --wrap=true", "salloc"])
def test_an_empty_image_is_refused_at_submission(sh: Run, command: str) -> None:
    done = sh(f"{command} --ch-image= {'' if 'sbatch' in command else 'true'}")
    assert done.returncode == 64
    assert done.stderr == "slurm-ch: error: --ch-image=: the image's name is empty\n"


def with_plugin(arguments: str, user: str, command: str) -> subprocess.CompletedProcess[str]:
    with Cluster(nodes=1, plugstack_lines=[f"required {paths.PLUGIN} {arguments}"]) as own:
        done = own.run(["bash", "-c", command], user=user)
        assert own.node_states()["n1"] in ("idle", "completing")
    return done


def test_a_launcher_that_dies_fails_the_step_at_once(user: str, image_sqfs: Path) -> None:
    done = with_plugin("python=/bin/true", user, f"srun --overcommit -n4 --ch-image={image_sqfs} echo host")
    assert (done.returncode, done.stdout) == (33, "")
    assert done.stderr.count("the launcher died before the container was ready (killed, or no Python could start)") == 1
    assert done.stderr.count("ask for more, or pull the image before the job (`slurm-ch pull`)") == 1


@pytest.mark.parametrize("argument", ["python=/nonexistent", "launcher=/nonexistent", "ch_join=/nonexistent"])
def test_an_installation_that_lacks_a_part(user: str, image_sqfs: Path, argument: str) -> None:
    done = with_plugin(argument, user, f"srun --overcommit -n4 --ch-image={image_sqfs} echo host")
    assert (done.returncode, done.stdout) == (31, "")
    assert done.stderr.count("/nonexistent: No such file or directory") == 1


def test_an_optional_plugin_fails_the_step_too(user: str, image_sqfs: Path) -> None:
    line = f"optional {paths.PLUGIN} ch_join=/nonexistent"
    with Cluster(nodes=1, plugstack_lines=[line]) as own:
        done = own.run(["srun", f"--ch-image={image_sqfs}", "echo", "host"], user=user)
    assert (done.returncode, done.stdout) == (31, "")
