# SPDX-License-Identifier: Apache-2.0
"""Small images: busybox and what a container's binds need, for the tests, the demo and the bench."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

_DIRECTORIES = (
    "bin", "dev", "etc", "home", "lib", "mnt", "opt", "proc", "root", "srv", "sys", "tmp", "usr/bin", "var/spool", "var/tmp",
)  # fmt: skip
_FILES = ("passwd", "group", "hosts", "resolv.conf", "machine-id")


def make_image(root: Path, marker: str = "", applets: Sequence[str] = ()) -> Path:
    """Make a directory image around busybox at `root`; /marker, if any, tells which it is. All applets, if none is named."""
    for name in _DIRECTORIES:
        (root / name).mkdir(parents=True, exist_ok=True)
    busybox = root / "bin/busybox"
    shutil.copy("/bin/busybox", busybox)
    for applet in applets or _every_applet(busybox):
        (root / "bin" / applet).symlink_to("busybox")
    for name in _FILES:
        (root / "etc" / name).touch()
    if marker:
        (root / "marker").write_text(marker + "\n")
    return root


def _every_applet(busybox: Path) -> list[str]:
    done = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True)
    return [applet for applet in done.stdout.split() if applet != "busybox"]


def squash(root: Path, to: Path) -> Path:
    """Make a SquashFS image of the directory `root`."""
    command = ["mksquashfs", str(root), str(to), "-quiet", "-no-progress", "-noappend", "-all-root"]
    subprocess.run(command, check=True, capture_output=True)
    to.chmod(0o644)
    return to
