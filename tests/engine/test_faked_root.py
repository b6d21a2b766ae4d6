# SPDX-License-Identifier: Apache-2.0
"""Faked root in a real image of Debian, with its own dpkg and useradd; changes are kept in memory."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import debian_image

Good = Callable[..., str]

ROOT = ("--uid=0", "--gid=0", "--seccomp", "--write-fake=30%")


@pytest.fixture(scope="module")
def debian(world_tmp: Path) -> Path:
    """The image, where every user can read it."""
    return Path(shutil.copy(debian_image.make(), world_tmp / "debian.sqfs"))


def test_dpkg(run: Callable[..., object], debian: Path) -> None:
    """A small package of Debian's is installed, works, and is removed without a trace."""
    script = """
set -e
test -z "$(command -v hello)"
dpkg -i /opt/hello_*.deb > /tmp/dpkg.$$ 2>&1 || { cat /tmp/dpkg.$$; exit 1; }
hello
stat -c '%U:%G %a' /usr/bin/hello
dpkg -s hello | grep ^Status
dpkg -V hello
dpkg -r hello > /tmp/dpkg.$$ 2>&1 && dpkg -P hello >> /tmp/dpkg.$$ 2>&1 || { cat /tmp/dpkg.$$; exit 1; }
rm /tmp/dpkg.$$
test ! -e /usr/bin/hello
dpkg -s hello 2>&1 | grep -c 'not installed'
dpkg --audit
"""
    done = run(*ROOT, debian, "--", "sh", "-c", script)
    assert done.returncode == 0, done  # type: ignore[attr-defined]
    out = done.stdout.splitlines()  # type: ignore[attr-defined]
    assert out == ["Hello, world!", "root:root 755", "Status: install ok installed", "1"]


def test_useradd(run: Callable[..., object], debian: Path) -> None:
    """A user and a group are added beside the image's own, and removed."""
    script = """
set -e
useradd --create-home --shell /bin/bash newcomer
groupadd newcomers
usermod --append --groups newcomers newcomer
id newcomer | sed 's/[0-9]*//g'
getent passwd newcomer | cut -d: -f1,6,7
stat -c %U /home/newcomer
echo newcomer:secret | chpasswd
getent passwd www-data | cut -d: -f1
id -un
userdel newcomer  # not --remove: a home that chown never gave away is not theirs
rm -r /home/newcomer
groupdel newcomers
! getent passwd newcomer
test ! -e /home/newcomer
! grep newcomer /etc/passwd /etc/group /etc/shadow
"""
    done = run(*ROOT, debian, "--", "sh", "-c", script)
    assert done.returncode == 0, done  # type: ignore[attr-defined]
    out = done.stdout.splitlines()  # type: ignore[attr-defined]
    assert out == [
        "uid=(newcomer) gid=(newcomer) groups=(newcomer),(newcomers)", "newcomer:/home/newcomer:/bin/bash", "root",
        "www-data", "root",
    ]  # fmt: skip
