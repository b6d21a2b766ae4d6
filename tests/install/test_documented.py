# SPDX-License-Identifier: Apache-2.0
"""The short part of `make docs-test`: the documented commands, to the letter, on this machine with an /opt and /etc/slurm of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "etc"))

import fresh  # noqa: E402

# What the commands change is hidden below new file systems, the checkout not, wherever it lies; nothing is fetched.
PRIVATE = r"""
set -eu
exec 2>&1
here=$PWD
mkdir -p /etc/slurm /opt
mount --bind "$here" /mnt
for place in /opt /etc/slurm /etc/profile.d; do mount -t tmpfs -o mode=755 tmpfs $place; done
mkdir -p "$here"
mount --bind /mnt "$here"
cd "$here"
apt-get() { echo "apt-get $1"; }
echo ClusterName=one > /etc/slurm/slurm.conf
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    # As an admin's shell has it, and with no Slurm of the tests'.
    env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"}
    return subprocess.run(
        ["unshare", "--mount", "--net", "bash", "-c", PRIVATE + script],
        check=False, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=env, timeout=240,
    )  # fmt: skip


def test_every_marked_block_parses_and_is_used() -> None:
    blocks = fresh.documented()
    for name, text in blocks.items():
        done = subprocess.run(["bash", "-n"], input=text, check=False, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), name
    assert {f"@{name}@" for name in blocks} == set(
        part for part in fresh.WAY["make"].split() if part[0] + part[-1] == "@@"
    )


def test_install_and_remove_as_documented() -> None:
    blocks = fresh.documented()
    # An upgrade is the same command again.
    assert blocks["make"].partition("#")[0].strip() in blocks["install"]
    script = f"""
{blocks["install"]}
{blocks["plugstack"]}
{blocks["plugstack"]}
grep -c include /etc/slurm/plugstack.conf
{blocks["doctor"]}
echo DOCTOR $?
! make uninstall prefix=/opt/slurm_ch
{blocks["remove"]}
find /opt /etc/slurm /etc/profile.d -xdev ! -type d | sort
cat /etc/slurm/slurm.conf
"""
    done = run(script)
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert "apt-get install" in lines
    assert "1" in lines  # the include is there once, however often that is done
    assert "DOCTOR 0" in lines
    assert any(
        "/etc/slurm/plugstack.conf.d/slurm_ch.conf:" in line and "remove that line first" in line for line in lines
    )
    assert lines[-3:] == ["/etc/slurm/plugstack.conf", "/etc/slurm/slurm.conf", "ClusterName=one"]
