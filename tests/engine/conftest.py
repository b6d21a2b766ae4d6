# SPDX-License-Identifier: Apache-2.0
"""`slurm-ch run` as an ordinary user, which must leave nothing."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import leftovers
from tests.command import SLURM_CH
from tests.small_images import make_image, squash

from .cdi import LIBRARY, LIBRARY_C, PROGRAM_C, SONAME, Write

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


# ---- Devices ----


@pytest.fixture(scope="session")
def driver(world_tmp: Path) -> Path:
    """A directory of the host with a driver's library, and a program linked against it."""
    root = world_tmp / "driver"
    root.mkdir()
    (root / "library.c").write_text(LIBRARY_C)
    (root / "program.c").write_text(PROGRAM_C)
    subprocess.run(
        ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{SONAME}", "-o", LIBRARY, "library.c"], cwd=root, check=True
    )
    subprocess.run(["gcc", "-o", "program", "program.c", LIBRARY], cwd=root, check=True)
    return root


@pytest.fixture(scope="session")
def glibc_dir(world_tmp: Path, driver: Path, user: str) -> Path:
    """An image with glibc, ldconfig, and the program, but not the driver's library."""
    root = make_image(world_tmp / "glibc", "glibc")
    shutil.copy(driver / "program", root / "usr/bin/program")
    listed = subprocess.run(["ldd", "/bin/cat"], check=True, capture_output=True, text=True).stdout
    for word in listed.split():
        if word.startswith("/"):
            place = root / word.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(word, place)
    (root / "sbin").mkdir()
    shutil.copy("/sbin/ldconfig", root / "sbin/ldconfig")
    (root / "etc/ld.so.conf").write_text("/usr/lib/other\n")
    subprocess.run(["chown", "-hR", f"{user}:", root], check=True)
    return root


@pytest.fixture(scope="session")
def glibc_sqfs(glibc_dir: Path, world_tmp: Path) -> Path:
    return squash(glibc_dir, world_tmp / "glibc.sqfs")


@pytest.fixture(scope="session")
def glibc_others(glibc_dir: Path, world_tmp: Path) -> Path:
    """The same as a directory that is root's."""
    root = world_tmp / "glibc-root"
    shutil.copytree(glibc_dir, root, symlinks=True)
    return root


@pytest.fixture(params=["directory", "SquashFS", "root's directory"])
def glibc(request: pytest.FixtureRequest, glibc_dir: Path, glibc_sqfs: Path, glibc_others: Path) -> Path:
    return {"directory": glibc_dir, "SquashFS": glibc_sqfs, "root's directory": glibc_others}[request.param]


@pytest.fixture
def write(world_tmp: Path) -> Write:
    """Write a spec to the directory of specs, which is emptied first, and return its path."""
    place = world_tmp / "cdi"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()

    def call(what: object, name: str = "fake.json") -> Path:
        path = place / name
        path.write_text(what if isinstance(what, str) else json.dumps(what))
        return path

    return call


@pytest.fixture
def with_ldconfig(image_dir: Path, world_tmp: Path) -> Callable[[str], Path]:
    """An image whose ldconfig is a script of the given text."""

    def make(text: str) -> Path:
        root = world_tmp / "scripted"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(image_dir, root, symlinks=True)
        (root / "sbin").mkdir()
        (root / "sbin/ldconfig").write_text(text)
        (root / "sbin/ldconfig").chmod(0o755)
        return root

    return make
