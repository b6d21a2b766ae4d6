# SPDX-License-Identifier: Apache-2.0
"""`make install`: what is where, and who may do what with it."""

from __future__ import annotations

import os
import stat
import subprocess
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def a_wheel(directory: Path) -> Path:
    """Return a package like those that the users' command needs, to be had without a network."""
    path = directory / "needed-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("needed/__init__.py", "")
        wheel.writestr("needed-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: needed\nVersion: 1\n")
        wheel.writestr("needed-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("needed-1.dist-info/RECORD", "")
    return path


def install(umask: int, root: Path, wheel: Path) -> dict[str, str]:
    """Install below `root` under `umask`, and return each file's type and mode."""
    words = ["make", "-s", "-C", ROOT, "install", f"DESTDIR={root}", "prefix=/opt/ch", "CH_RUN=1", f"VENDOR={wheel}"]
    env = {**os.environ, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    subprocess.run(words, check=True, capture_output=True, umask=umask, env=env)
    return {str(path.relative_to(root)): stat.filemode(path.lstat().st_mode) for path in root.rglob("*")}


def test_the_same_modes_whatever_the_umask(tmp_path: Path) -> None:
    wheel = a_wheel(tmp_path)
    for name in ("closed", "open"):
        (tmp_path / name).mkdir(mode=0o755)
    # An older installation, as it was made without care.
    for name in ("lib/slurm_ch/slurm_ch/errors.py", "share/slurm_ch/plugstack.conf", "bin/slurm-ch"):
        old = tmp_path / "open/opt/ch" / name
        old.parent.mkdir(parents=True)
        old.touch()
        old.chmod(0o666)
        old.parent.chmod(0o777)
    closed, opened = install(0o077, tmp_path / "closed", wheel), install(0, tmp_path / "open", wheel)
    assert closed == opened
    for path, mode in closed.items():
        assert mode in ("drwxr-xr-x", "-rw-r--r--", "-rwxr-xr-x", "lrwxrwxrwx"), (path, mode)
    places = {path: mode for path, mode in closed.items() if "needed/" in path or "bin/" in path or path == "opt"}
    assert places["opt/ch/bin/slurm-ch"] == places["opt/ch/bin/ch-run"] == "-rwxr-xr-x"
    assert places["opt/ch/lib/slurm_ch/vendor/needed/__init__.py"] == "-rw-r--r--"
    assert any(path.endswith(".pyc") for path in closed)
