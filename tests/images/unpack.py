# SPDX-License-Identifier: Apache-2.0
"""Unpacks an image without our code: GNU tar for each layer, whiteouts by hand. Needs root."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
import subprocess
import tarfile
from pathlib import Path
from typing import Any

TAR = [
    "tar",
    "-x",
    "-P",
    "-p",
    "--same-owner",
    "--numeric-owner",
    "--xattrs",
    "--xattrs-include=*",
    "--warning=no-timestamp",
]


def unpack(layers: list[bytes], root: Path) -> None:
    """Unpack uncompressed layers, base first."""
    root.mkdir()
    root.chmod(0o755)
    for layer in layers:
        _whiteouts(layer, root)
        _make_room(layer, root)
        done = subprocess.run(
            [*TAR, "-C", root, "--exclude=.wh.*", "-f", "-"], input=layer, check=False, capture_output=True
        )
        assert done.returncode == 0, done.stderr


def _members(layer: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(layer), mode="r:") as archive:
        return archive.getmembers()


def _inside(root: Path, directory: str) -> Path | None:
    """Return a directory of the image; its links are relative and stay within it."""
    found = root / directory
    return found if found.is_dir() else None


def _whiteouts(layer: bytes, root: Path) -> None:
    for member in _members(layer):
        directory, _, name = member.name.rpartition("/")
        if not name.startswith(".wh.") or (place := _inside(root, directory)) is None:
            continue
        if name == ".wh..wh..opq":
            for one in place.iterdir():
                _remove(one)
        elif not name.startswith(".wh..wh."):
            _remove(place / name[4:])


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


def _make_room(layer: bytes, root: Path) -> None:
    """Remove what tar would not: a directory where something else comes, a link where a directory does."""
    for member in _members(layer):
        path = root / member.name
        if not os.path.lexists(path) or "/.wh." in "/" + member.name:
            continue
        is_directory = path.is_dir() and not path.is_symlink()
        if is_directory != member.isdir() and (is_directory or path.is_symlink()):
            _remove(path)


def snapshot(root: Path) -> dict[str, Any]:
    """Return a tree's properties to compare, by path: hard links by the first of their names."""
    found: dict[str, Any] = {}
    names: dict[tuple[int, int], list[str]] = {}
    for here, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = os.path.join(here, name)
            key = os.path.relpath(path, root)
            status = os.lstat(path)
            what: dict[str, Any] = {"mode": oct(status.st_mode), "owner": (status.st_uid, status.st_gid)}
            what["xattrs"] = {
                one: os.getxattr(path, one, follow_symlinks=False) for one in os.listxattr(path, follow_symlinks=False)
            }
            if not stat.S_ISDIR(status.st_mode):
                # SquashFS has seconds since 1970.
                what["mtime"] = max(0, status.st_mtime_ns // 10**9)
                names.setdefault((status.st_dev, status.st_ino), []).append(key)
            if stat.S_ISREG(status.st_mode):
                what["data"] = (status.st_size, hashlib.sha256(Path(path).read_bytes()).hexdigest())
            elif stat.S_ISLNK(status.st_mode):
                what["target"] = os.readlink(path)
            elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
                what["device"] = (os.major(status.st_rdev), os.minor(status.st_rdev))
            found[key] = what
    for group in names.values():
        for name in group:
            found[name]["names"] = sorted(group)
    root_status = os.lstat(root)
    found["."] = {"mode": oct(root_status.st_mode), "owner": (root_status.st_uid, root_status.st_gid)}
    return found


def differences(left: dict[str, Any], right: dict[str, Any]) -> list[str]:
    """Return a line for every path that is not the same in both."""
    return [
        f"{name}: {left.get(name)} != {right.get(name)}"
        for name in sorted({*left, *right})
        if left.get(name) != right.get(name)
    ]
