# SPDX-License-Identifier: Apache-2.0
"""The sdist has all that the checkout has, and the wheel that is built from it, offline, all that runs."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from slurm_ch import __version__
from tests import checkout


def built(kind: str, source: Path, out: Path) -> Path:
    """Build an sdist or a wheel, with no network at all."""
    out.mkdir()
    code = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", code, out],
        check=False, capture_output=True, text=True, cwd=source, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (found,) = out.iterdir()
    return found


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout without what was built in it."""
    where = tmp_path_factory.mktemp("source") / "checkout"
    checkout.copy(where)
    return where


@pytest.fixture(scope="module")
def sdist(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("sdist", copy, tmp_path_factory.mktemp("sdist") / "out")


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_the_sdist_has_everything(copy: Path, sdist: Path, tmp_path: Path) -> None:
    expected = {name for name in files(copy) if ".egg-info/" not in name}
    assert {"Makefile", "spank/plugin/slurm_ch.map", "docs/admins.rst", "tests/install/test_sdist.py"} <= expected
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames() if not archive.getmember(name).isdir()}
    made = {"PKG-INFO", "setup.cfg"}
    assert {name for name in names if ".egg-info/" not in name} - made == expected


def test_a_wheel_of_the_sdist_has_all_that_runs(sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data") if hasattr(tarfile, "data_filter") else archive.extractall(tmp_path)
    source = tmp_path / f"slurm_ch-{__version__}"
    modules = {f"slurm_ch/{name}" for name in files(source / "slurm_ch") if name.endswith(".py")}
    wheel = built("wheel", source, tmp_path / "out")
    assert wheel.name.endswith(f"-linux_{os.uname().machine}.whl")
    with zipfile.ZipFile(wheel) as archive:
        modes = {one.filename: one.external_attr >> 16 for one in archive.infolist()}
        data = f"slurm_ch-{__version__}.data/scripts/slurm-ch"
        # The command is a static program that starts Python's part where that is needed.
        assert archive.read(data) == archive.read("slurm_ch/native/ch-join")
        info = f"slurm_ch-{__version__}.dist-info/entry_points.txt"
        assert "slurm-ch-python = slurm_ch.cli.main:main" in archive.read(info).decode()
    programs = {f"slurm_ch/native/{name}" for name in ("ch-join", "ch-relay", "ch-squashfuse_ll")}
    found = {name for name in modes if ".dist-info/" not in name and name != data}
    # The plugin is a site's: it is for one release of Slurm.
    assert found == modules | programs | {"slurm_ch/py.typed", "slurm_ch/native/parts.json"}
    assert all(modes[name] & 0o111 for name in programs)
    assert {name.rpartition("/")[2] for name in modes} >= {"LICENSE", "NOTICE"}
