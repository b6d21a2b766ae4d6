"""Devices by CDI specs, in real containers: libraries, links, nodes, hooks, environment, joins."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import make_image, squash

from .conftest import Run

Good = Callable[..., str]
Fails = Callable[..., str]

LIBRARY = "libfake.so.535.7"
SONAME = "libfake.so.1"
FOLDER = "/usr/lib/fake"

LIBRARY_C = "int answer(void) { return 42; }\n"
PROGRAM_C = '#include <stdio.h>\nint answer(void);\nint main(void) { return printf("answer %d\\n", answer()) < 0; }\n'


def spec(edits: dict[str, object], **more: object) -> dict[str, object]:
    return {
        "cdiVersion": "0.6.0",
        "kind": "fake.test/gpu",
        "devices": [{"name": "0", "containerEdits": {"env": ["FAKE=0"]}}],
        "containerEdits": edits,
        **more,
    }


def hook(*words: str) -> dict[str, object]:
    return {"hookName": "createContainer", "path": f"/usr/bin/{words[0]}", "args": list(words)}


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


Write = Callable[..., Path]


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


def library_mount(driver: Path) -> dict[str, object]:
    target = f"{FOLDER}/{LIBRARY}"
    return {"hostPath": str(driver / LIBRARY), "containerPath": target, "options": ["ro", "nosuid", "nodev", "bind"]}


@pytest.mark.parametrize("words", [("nvidia-cdi-hook",), ("nvidia-ctk", "hook")])
def test_library_is_found_after_the_cache_is_updated(
    good: Good, run: Run, write: Write, glibc: Path, driver: Path, words: tuple[str, ...]
) -> None:
    path = write(
        spec({"mounts": [library_mount(driver)], "hooks": [hook(*words, "update-ldcache", "--folder", FOLDER)]})
    )
    assert good("--device", path, glibc, "--", "program") == "answer 42\n"
    # Without the hook it isn't: the test would notice if the cache were not updated.
    path = write(spec({"mounts": [library_mount(driver)]}))
    done = run("--device", path, glibc, "--", "program")
    assert done.returncode == 127
    assert SONAME in done.stderr
