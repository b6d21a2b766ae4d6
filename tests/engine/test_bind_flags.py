# SPDX-License-Identifier: Apache-2.0
"""SRC:DST:FLAGS, and paths with colons and commas in them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .conftest import Run, mountinfo

Good = Callable[..., str]
Fails = Callable[..., str]


@pytest.fixture(scope="module")
def source(world_tmp: Path, user: str) -> Iterator[Path]:
    """A directory of the user's, with a program, and another file system below."""
    root = world_tmp / "bind-flags"
    (root / "below").mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "true")
    shutil.chown(root, user)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", root / "below"], check=True)
    yield root
    subprocess.run(["umount", root / "below"], check=True)


@pytest.mark.parametrize(
    ("flags", "written"),
    [
        ("", True),
        (":rw", True),
        (":rslave", True),
        (":ro", False),
        (":ro+rprivate", False),
        (":rprivate+ro+noexec", False),
    ],
)
@pytest.mark.row("--bind")
def test_read_only_is_so_down_to_what_is_mounted_below(
    run: Run, image: Path, source: Path, flags: str, written: bool
) -> None:
    command = ["sh", "-c", "touch /mnt/x; touch /mnt/below/x"]
    done = run("-b", f"{source}:/mnt{flags}", image, "--", *command)
    assert done.stderr.count("Read-only file system") == (0 if written else 2), done
    for made in (source / "x", source / "below/x"):
        assert made.exists() == written
        made.unlink(missing_ok=True)


def test_other_flags(good: Good, fails: Fails, image: Path, source: Path) -> None:
    look = ["cat", "/proc/self/mountinfo"]
    options = mountinfo(good("-b", f"{source}:/mnt:noexec+nosuid+nodev", image, "--", *look))["/mnt"][1].split(",")
    assert {"rw", "noexec", "nosuid", "nodev"} <= set(options)
    line = fails(126, "-b", f"{source}:/mnt:noexec", image, "--", "/mnt/true")
    assert line.startswith("can't execute /mnt/true: Permission denied: its file system is mounted noexec;")
    assert good("-b", f"{source}:/mnt:ro", image, "--", "/mnt/true") == ""
    # A file, at a place that is made for it.
    done = good("-b", "/etc/hostname:/new/name:ro", image, "--", "cat", "/new/name")
    assert done == Path("/etc/hostname").read_text()
    line = fails(64, "-b", "/usr:/mnt:readonly", image, "--", "true")
    assert line == "--bind=/usr:/mnt:readonly: not a flag of a bind, which are rw, ro, nosuid, nodev, noexec: readonly"


def test_colons_and_commas(good: Good, image: Path, world_tmp: Path) -> None:
    odd = world_tmp / "a:b,c"
    odd.mkdir(exist_ok=True)
    (odd / "file").write_text("odd\n")
    for word in (r"a\:b\,c:/d\:e\,f", r"a\:b,c:/d\:e,f", r"a\:b,c:/d\:e,f:ro"):
        assert good("-b", f"{world_tmp}/{word}", image, "--", "cat", "/d:e,f/file") == "odd\n"
