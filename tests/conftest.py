# SPDX-License-Identifier: Apache-2.0
"""Fixtures for all tests: an ordinary user, and real images."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import own_view, side_by_side
from tests.small_images import make_image, squash

USER = own_view.USER

# How long an example takes is the machine's business: a busy one stops a test for seconds.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


def pytest_cmdline_main() -> None:
    """First of all, hide the processes and files of other runs."""
    own_view.enter()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--side-by-side", action="store_true", help="run the tests in two processes at once")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    return side_by_side.run(session)


@pytest.fixture(scope="session")
def user() -> str:
    """An ordinary user; the Makefile made it."""
    pwd.getpwnam(USER)
    return USER


@pytest.fixture(scope="session")
def world_tmp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory that every user can reach, removed at the end."""
    path = Path(tempfile.mkdtemp(prefix="slurm-ch-tests-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def open_tmp(world_tmp: Path) -> Path:
    """A new directory that every user can reach; each run of pytest makes pytest's own inaccessible."""
    path = Path(tempfile.mkdtemp(dir=world_tmp))
    path.chmod(0o755)
    return path


@pytest.fixture
def outside(user: str) -> Iterator[Path]:
    """A directory of the user's that no container shows: data/run, and scratch, a link to data."""
    path = Path(tempfile.mkdtemp(prefix="slurm-ch-place-", dir="/opt"))
    (path / "data/run").mkdir(parents=True)
    (path / "data/run/here").write_text("mine\n")
    (path / "scratch").symlink_to("data")
    subprocess.run(["chown", "-hR", f"{user}:", path], check=True)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def image_dir(world_tmp: Path, user: str) -> Path:
    """A directory image that belongs to the user; don't change it."""
    root = make_image(world_tmp / "image", "one")
    subprocess.run(["chown", "-hR", f"{user}:", str(root)], check=True)
    return root


@pytest.fixture(scope="session")
def image_sqfs(world_tmp: Path, image_dir: Path) -> Path:
    """The same as a SquashFS file."""
    return squash(image_dir, world_tmp / "image.sqfs")


@pytest.fixture(scope="session")
def other_sqfs(world_tmp: Path) -> Path:
    """Another image, with another marker."""
    return squash(make_image(world_tmp / "other", "two"), world_tmp / "other.sqfs")


@pytest.fixture(scope="session")
def apptainers(world_tmp: Path) -> Path:
    """A `.sif` file that Apptainer itself has made; `- WORD...` greets them."""
    if os.uname().machine != "x86_64":
        pytest.skip("the program in it is for x86_64")
    made = Path(__file__).parent / "engine/apptainer/app.sif"
    return shutil.copyfile(made, world_tmp / "apptainers.sif")
