# SPDX-License-Identifier: Apache-2.0
"""Faked root in a real image of Debian, with its own dpkg and useradd; changes are kept in memory."""

from __future__ import annotations

import pwd
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
userdel --remove newcomer 2> /dev/null && exit 1  # a home that chown never gave away is not theirs
id newcomer > /dev/null 2>&1 && exit 1
groupdel newcomers
rm -r /home/newcomer
useradd --create-home again
userdel --remove --force again 2> /dev/null
test ! -e /home/again
getent passwd newcomer && exit 1
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


def test_what_an_installation_does_as_root(good: Good, debian: Path) -> None:
    """Owners given to files, by themselves and from an archive, and a daemon's user taken on: pretended."""
    script = """
install --owner=www-data --group=www-data --mode=640 /dev/null /var/lib/state
chown -R man:man /var/backups
echo text > /opt/file
tar -C /opt --owner=www-data:33 --group=www-data:33 -cf /opt/archive.tar file
tar -C /srv -xf /opt/archive.tar
setpriv --reuid=www-data --regid=www-data --init-groups id -un
stat -c '%U %a' /var/lib/state /srv/file
"""
    assert good(*ROOT, debian, "--", "sh", "-ec", script) == "root\nroot 640\nroot 644\n"


def test_useradd_where_a_line_is_ours(good: Good, debian: Path, user: str) -> None:
    """With the home shown, root's line of the image is changed in the file itself, which useradd puts another in place of."""
    script = "useradd newcomer; getent passwd newcomer root | cut -d: -f1,6; userdel newcomer; grep -c newcomer /etc/passwd || true"
    out = good(*ROOT, "--home", debian, "--", "sh", "-ec", script)
    assert out.splitlines() == ["newcomer:/home/newcomer", f"root:{pwd.getpwnam(user).pw_dir}", "0"]
