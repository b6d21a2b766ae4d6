# SPDX-License-Identifier: Apache-2.0
"""Files of others in a SquashFS image: no other id exists in a container, so all are the user's."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command import CH_RUN
from tests.small_images import make_image, squash

from .conftest import settings

Good = Callable[..., str]


@pytest.fixture(scope="module")
def packed(world_tmp: Path) -> Path:
    """An image packed with its owners: files and directories of root, and of two others."""
    root, to = make_image(world_tmp / "owners", "owners"), world_tmp / "owners.sqfs"
    for number, mode in ((33, 0o700), (4000, 0o755)):
        place = root / f"of-{number}"
        place.mkdir()
        (place / "file").write_text("text\n")
        (place / "file").chmod(0o600)
        subprocess.run(["chown", "-R", f"{number}:{number}", place], check=True)
        place.chmod(mode)
    subprocess.run(["mksquashfs", root, to, "-quiet", "-no-progress"], check=True, capture_output=True)
    to.chmod(0o644)
    return to


def test_all_files_are_the_users(good: Good, packed: Path, user: str) -> None:
    script = "cat /of-*/file; stat -c %u:%g:%a / /of-* /of-*/file; id -u; id -g"
    *text, root, one, two, file, other, uid, gid = good(packed, "--", "sh", "-c", script).splitlines()
    assert text == ["text", "text"]
    assert [root.rpartition(":")[0], one, two] == [f"{uid}:{gid}", f"{uid}:{gid}:700", f"{uid}:{gid}:755"]
    assert (file, other) == (f"{uid}:{gid}:600", f"{uid}:{gid}:600")
    assert good("-u0", "-g0", packed, "--", "stat", "-c", "%U:%G", "/of-33/file") == "root:root\n"


def test_they_can_be_changed_in_memory(good: Good, packed: Path) -> None:
    script = """
set -e
echo more >> /of-33/file
cat /of-33/file
chmod 640 /of-4000/file
mv /of-4000/file /of-4000/other
stat -c %a /of-4000/other
rm /of-4000/other
rmdir /of-4000
touch /of-33/new
"""
    assert good("-W", packed, "--", "sh", "-c", script) == "text\nmore\n640\n"


def test_a_directory_of_somebody_elses_that_all_may_write_to(good: Good, world_tmp: Path, user: str) -> None:
    """The overlay's copy of it would have to be theirs, whom the container doesn't know: docs/users.rst has what helps."""
    image = make_image(world_tmp / "others", "others")
    for mode in (0o777, 0o1777):
        (image / "open").mkdir(exist_ok=True)
        (image / "open").chmod(mode)
        said = good("-W", image, "--", "sh", "-c", "mkdir /open/new 2>&1; true")
        assert said.endswith(f": {os.strerror(errno.EOVERFLOW)}\n"), said
    own = world_tmp / "own-open"
    own.mkdir()
    shutil.chown(own, user)
    assert good("-W", "-b", f"{own}:/open", image, "--", "sh", "-c", "touch /open/new; ls /open") == "new\n"
    assert (
        good("-W", squash(image, world_tmp / "others.sqfs"), "--", "sh", "-c", "touch /open/new; ls /open") == "new\n"
    )


def test_with_ch_run_they_are_nobodys(packed: Path, user: str) -> None:
    done = subprocess.run(
        [CH_RUN, packed, "--", "stat", "-c", "%u", "/of-33", "/marker"], check=False, capture_output=True, text=True,
        **settings(user),  # type: ignore[call-overload]
    )  # fmt: skip
    assert (done.returncode, done.stdout.splitlines()[0], done.stderr) == (0, "65534", "")
    assert done.stdout.splitlines()[1] != "65534"
