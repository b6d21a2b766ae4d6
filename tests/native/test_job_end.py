# SPDX-License-Identifier: Apache-2.0
"""A job's end, where Slurm is root: only a process of the job's user looks for what the job has kept, and removes it."""

from __future__ import annotations

import os
import pwd
import subprocess
from pathlib import Path

import pytest

from slurm_ch import agreement
from slurm_ch.plugin import job_end

from .made import write_script

JOB = 4711


class Place:
    """A site's directory for containers with a job's directory in it, and a Python that records its caller."""

    def __init__(self, top: Path, user: str) -> None:
        self.uid, self.gid = pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid
        self.root = top / "containers"
        self.root.mkdir()
        self.root.chmod(0o1777)
        self.own = Path(f"{self.root}{agreement.CONTAINERS_BELOW}{self.uid}")
        self.note = top / "note"
        self.note.touch(mode=0o666)
        self.note.chmod(0o666)
        show = 'echo "$(id -u) $(id -G) $* env=$(/usr/bin/env | grep -vc -e ^PWD= -e ^_= -e ^SHLVL=)"'
        self.python = write_script(
            top / "python", f"#!/bin/sh\n{{ {show}; ls /proc/self/fd | wc -w; }} > {self.note}\nexit 3\n"
        )

    def make(self) -> None:
        (self.own / f"{agreement.CONTAINERS_OF_JOB}{JOB}").mkdir(parents=True)

    def site(self, pyxis: str = "yes") -> str:
        return f"pyxis={pyxis}\npython={self.python}\nlauncher=/l.py\ncontainers={self.root}"


@pytest.fixture
def place(world_tmp: Path, user: str, request: pytest.FixtureRequest) -> Place:
    top = world_tmp / f"end-{request.node.name}"
    top.mkdir()
    return Place(top, user)


def ended(fakes: dict[str, Path], place: Place, pyxis: str = "yes") -> str:
    done = subprocess.run(
        [fakes["argv0"], "epilog", str(place.uid), str(JOB)], check=False, capture_output=True, text=True, timeout=60,
        env={"ASAN_OPTIONS": "detect_leaks=1", "FAKE_SITE": place.site(pyxis)}, extra_groups=[4, 27],
    )  # fmt: skip
    # Always a success, because an epilog that fails drains the node.
    assert (done.returncode, done.stderr) == (0, "")
    return place.note.read_text()


def test_as_the_user_and_nobody_else(fakes: dict[str, Path], place: Place) -> None:
    place.make()
    expected = f"{place.uid} {place.gid} -I -S /l.py --job-end {JOB} {place.root} env=0"
    said, descriptors = ended(fakes, place).splitlines()
    assert said == expected
    # Three, and the listing's own.
    assert descriptors == "4"


@pytest.mark.parametrize("what", ["nothing kept", "not asked for", "only root sees it", "unknown user"])
def test_nothing_is_started(fakes: dict[str, Path], place: Place, what: str) -> None:
    if what != "nothing kept":
        place.make()
    if what == "only root sees it":
        place.root.chmod(0o700)
    if what == "unknown user":
        place.uid = 987654
    assert ended(fakes, place, "no" if what == "not asked for" else "yes") == ""


def test_what_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All files of that job go, whatever their modes; nothing behind a link, and no other job's files."""
    monkeypatch.setattr(job_end, "_SECONDS", 0)
    monkeypatch.chdir(tmp_path)
    own = Path(f"{tmp_path}{agreement.CONTAINERS_BELOW}{os.geteuid()}")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "precious").touch()
    for job in (JOB, JOB + 1):
        deep = own / f"{agreement.CONTAINERS_OF_JOB}{job}/n1/c/work/work"
        deep.mkdir(parents=True)
        (deep.parent / "link").symlink_to(theirs)
        (deep / "file").touch(mode=0)
        deep.chmod(0)
    left = own / ".gone-0123"
    left.mkdir()
    own.chmod(0o700)
    assert job_end.main([str(JOB), str(tmp_path)]) == 0
    assert [path.name for path in own.iterdir()] == [f"{agreement.CONTAINERS_OF_JOB}{JOB + 1}"]
    assert (theirs / "precious").exists()
    # A directory that others can write to is not trusted.
    own.chmod(0o777)
    assert job_end.main([str(JOB + 1), str(tmp_path)]) == 1
    assert list(own.iterdir())
