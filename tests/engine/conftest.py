# SPDX-License-Identifier: Apache-2.0
"""`slurm-ch run` as an ordinary user, and what it must not leave behind."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import leftovers
from tests.command import SLURM_CH

TIMEOUT = 30

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def settings(user: str) -> dict[str, object]:
    """Return subprocess's arguments for an ordinary user, in /."""
    entry = pwd.getpwnam(user)
    return {
        "user": entry.pw_uid,
        "group": entry.pw_gid,
        "extra_groups": os.getgrouplist(user, entry.pw_gid),
        "cwd": "/",
        "env": {"HOME": entry.pw_dir, "USER": user, "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
    }


@pytest.fixture
def run(user: str, image_dir: Path) -> Iterator[Run]:
    """Run `slurm-ch run` with the given words; afterwards everything must be as before."""
    before, before_tree = leftovers.Snapshot(1), tree(image_dir)

    def call(*words: object, **kw: object) -> subprocess.CompletedProcess[str]:
        keywords = {**settings(user), "stdin": subprocess.DEVNULL, "timeout": TIMEOUT, **kw}
        command = [SLURM_CH, "run", *map(str, words)]
        return subprocess.run(command, check=False, capture_output=True, text=True, **keywords)  # type: ignore[call-overload, no-any-return]

    yield call
    before.wait_until_clean()
    assert tree(image_dir) == before_tree


@pytest.fixture
def good(run: Run) -> Callable[..., str]:
    """Run words that must succeed silently, and return what they print."""

    def call(*words: object, **kw: object) -> str:
        done = run(*words, **kw)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    return call


@pytest.fixture
def fails(run: Run) -> Callable[..., str]:
    """Run words that must fail with `code`, and return the one line of the error."""

    def call(code: int, *words: object, **kw: object) -> str:
        done = run(*words, **kw)
        assert done.returncode == code, done
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith("slurm-ch: error: ")
        return done.stderr.removeprefix("slurm-ch: error: ").rstrip("\n")

    return call


@pytest.fixture(params=["directory", "SquashFS"])
def image(request: pytest.FixtureRequest, image_dir: Path, image_sqfs: Path) -> Path:
    """The same image in both forms."""
    return image_dir if request.param == "directory" else image_sqfs


def tree(root: Path) -> set[str]:
    """Return the names below `root`: nothing may be made in an image."""
    return {str(path) for path in root.rglob("*")}


def mountinfo(text: str) -> dict[str, list[str]]:
    """Return the last mount's fields by mount point: root, options, type, source, super options."""
    found = {}
    for line in text.splitlines():
        fields = line.split()
        dash = fields.index("-")
        found[fields[4]] = [fields[3], fields[5], *fields[dash + 1 : dash + 4]]
    return found
