#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Try the documented ways to install on fresh Debian machines with Debian's own Slurm.

    fresh.py [--way WAY]... [RELEASE...]

Each release gets a tree made by debootstrap, with Slurm's packages and a system
configuration of one node. Each way starts from that tree anew (an overlay that
is thrown away), runs the commands of README.rst and docs/admins.rst to the
letter, and then, as an ordinary user: a bare srun, a step in a container, a
batch script, the same after an upgrade, and a bare srun after the removal.

Ways: `make` (make install), `deb` (make deb; apt), `pip` (a virtual environment).
A table is printed at the end; exit status 1 if anything failed. Needs root.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import matrix

HERE = matrix.HERE
WORK = HERE / "build/fresh"
RELEASES = ("bookworm", "trixie")
WAYS = ("make", "deb", "pip")
STAGES = ("install", "step", "upgrade", "remove")
STEP_SECONDS = 1200

SLURM = "slurmctld slurmd slurm-client munge adduser"

# One node, as Debian's packages would be configured; without systemd and cgroups.
SLURM_CONF = """\
ClusterName=fresh
SlurmctldHost=HOST
SlurmUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd
SlurmctldLogFile=/var/log/slurmctld.log
SlurmdLogFile=/var/log/slurmd.log
ReturnToService=2
NodeName=HOST CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
"""

# What every way needs: a running Slurm, a user, an image, and functions that try them.
COMMON = r"""
exec 9>&2; BASH_XTRACEFD=9
set -eu
export DEBIAN_FRONTEND=noninteractive
export SLURM_CONF=/etc/slurm/slurm.conf
stage() { echo "STAGE $1" >&3; }
slurm_up() {
    mkdir -p /run/munge /var/spool/slurmctld /var/spool/slurmd
    chown munge: /run/munge; chmod 755 /run/munge
    [ -e /etc/munge/munge.key ] || { dd if=/dev/urandom of=/etc/munge/munge.key bs=1k count=1 2> /dev/null
        chown munge: /etc/munge/munge.key; chmod 400 /etc/munge/munge.key; }
    pgrep -x munged > /dev/null || setpriv --reuid=munge --regid=munge --clear-groups munged
    pkill -x slurmd || true; pkill -x slurmctld || true
    while pgrep -x slurmctld > /dev/null || pgrep -x slurmd > /dev/null; do read -rt 0.1 <> <(:) || :; done
    slurmctld; slurmd
    for _ in $(seq 100); do
        case $(sinfo -ho %t 2> /dev/null) in idle*) return;; esac
        read -rt 0.2 <> <(:) || :
    done
    sinfo; cat /var/log/slurmd.log; return 1
}
as_user() { setpriv --reuid=carol --regid=carol --init-groups env -i HOME=/home/carol USER=carol \
    PATH=/usr/local/bin:/usr/bin:/bin:${EXTRA_PATH:-} SLURM_CONF=$SLURM_CONF sh -c "cd /tmp; $1"; }
bare() { # an srun without our options prints nothing of ours
    said=$(as_user "timeout 60 srun -Q echo bare 2>&1"); [ "$said" = bare ] || { echo "bare srun: $said"; return 1; }; }
steps() {
    bare
    said=$(as_user "timeout 60 srun -Q --ch-image=/srv/image.sqfs cat /marker 2>&1")
    [ "$said" = marked ] || { echo "step: $said"; return 1; }
    printf '#!/bin/sh\ncat /marker\nsrun cat /marker\n' > /tmp/job; chmod 755 /tmp/job
    as_user "timeout 60 sbatch --quiet --wait -o out --ch-image=/srv/image.sqfs ./job; cat out; rm out" > /tmp/said 2>&1
    [ "$(cat /tmp/said)" = "$(printf 'marked\nmarked')" ] || { echo "batch script: $(cat /tmp/said)"; return 1; }
}
make_image() {
    mkdir -p /srv/root/bin; cp /bin/busybox /srv/root/bin/
    for name in sh cat ls; do ln -s busybox /srv/root/bin/$name; done
    for name in dev proc sys tmp etc usr/bin usr/local/bin root home; do mkdir -p /srv/root/$name; done
    touch /srv/root/etc/passwd /srv/root/etc/group
    echo marked > /srv/root/marker
    mksquashfs /srv/root /srv/image.sqfs -all-root -quiet -no-progress > /dev/null; chmod 644 /srv/image.sqfs
}
apt_get() { apt-get -qq -y -o Dpkg::Use-Pty=0 --no-install-recommends "$@" > /dev/null; }
chmod 666 /dev/fuse
make_image
"""

WAY = {
    "make": r"""
# From a clone below root's home, which others can't read, with a strict umask.
cp -r /src /root/slurm_ch; chmod 700 /root; umask 077; cd /root/slurm_ch
slurm_up; bare
@install@
@plugstack@
slurm_up
@doctor@
stage install
steps; stage step
sed -i 's/^__version__ = .*/__version__ = "0.9.9"/' slurm_ch/__init__.py
@make@
/opt/slurm_ch/bin/slurm-ch --version | grep -F 0.9.9
slurm_up; steps; stage upgrade
! make uninstall prefix=/opt/slurm_ch
@remove@
[ ! -e /opt/slurm_ch/lib/slurm_ch ]
slurm_up; bare; stage remove
""",
    "deb": r"""
apt_get update
apt_get install $(sed -n '/^Build-Depends:/,/^Standards/s/^ \([a-z0-9.-]*\).*,$/\1/p' /src/etc/packages/debian/control) \
    build-essential fakeroot
build() { (cd /src && unshare --net make deb); }
build
[ "$(ls /src/build/packages/*.deb | wc -l)" = 2 ]
slurm_up; bare
apt_get install /src/build/packages/*.deb
slurm_up; slurm-ch doctor --quiet; stage install
steps; stage step
sed -i 's/^__version__ = .*/__version__ = "0.9.9"/' /src/slurm_ch/__init__.py
# With a newer date too: the package's files have that date, and Python recognizes stale bytecode by date and size.
sed -i '1s/(.*)/(0.9.9-1)/; s/00:00:00/00:00:59/' /src/etc/packages/debian/changelog
rm /src/build/packages/*.deb; build
apt_get install /src/build/packages/*.deb
slurm-ch --version | grep -F 0.9.9
slurm_up; steps; stage upgrade
# A node with another Slurm would refuse the package: its dependency names the release.
dpkg -s slurm-ch-plugin | grep "^Depends:.*slurm-wlm-basic-plugins (<<"
apt_get purge slurm-ch-plugin slurm-ch
[ ! -e /usr/lib/slurm_ch ] && [ ! -L /etc/slurm/plugstack.conf.d/slurm_ch.conf ] && [ ! -e /usr/share/slurm_ch ]
slurm_up; bare; stage remove
""",
    "pip": r"""
apt_get update; apt_get install python3-venv python3-dev gcc libc6-dev make $STATIC
slurm_up
python3 -m venv /opt/venv; /opt/venv/bin/pip -q install /src; stage install
try() {
    for words in "" "--join"; do
        said=$(as_user "timeout 60 srun -Q -n2 --overcommit /opt/venv/bin/slurm-ch run $words /srv/image.sqfs -- cat /marker 2>&1")
        [ "$said" = "$(printf 'marked\nmarked')" ] || { echo "slurm-ch run $words: $said"; return 1; }
    done
}
try; stage step
sed -i 's/^__version__ = .*/__version__ = "0.9.9"/' /src/slurm_ch/__init__.py
/opt/venv/bin/pip -q install --upgrade /src
/opt/venv/bin/slurm-ch --version | grep -F 0.9.9
try; stage upgrade
/opt/venv/bin/pip -q uninstall -y slurm_ch
[ ! -e /opt/venv/bin/slurm-ch ]; bare; stage remove
""",
}

# As root of a new mount and pid namespace: the tree below a tmpfs becomes the root.
ENTER = r"""
set -e
tree=$1 over=$2; shift 2
mount -t tmpfs tmpfs "$over"
mkdir "$over/upper" "$over/work" "$over/root"
mount -t overlay -o lowerdir="$tree",upperdir="$over/upper",workdir="$over/work" overlay "$over/root"
exec bash -c "$ENTER_TREE" enter "$over/root" "$@"
"""


def blocks(path: Path) -> dict[str, str]:
    """Return the literal blocks of a page that are marked `.. run: NAME`, by name."""
    found: dict[str, str] = {}
    for name, block in re.findall(r"^\.\. run: (\S+)\n\n::\n\n((?:    .*\n|\n)+)", path.read_text(), re.M):
        found[name] = "".join(line[4:] or "\n" for line in block.splitlines(keepends=True)).strip() + "\n"
    return found


def documented() -> dict[str, str]:
    """Return every marked block of the README and the admins' page."""
    return blocks(HERE / "README.rst") | blocks(HERE / "docs/admins.rst")


def base(release: str, log: Path) -> Path:
    """Return the release's tree with Slurm, made if it isn't there."""
    tree = WORK / release / "tree"
    if (tree / "ready").exists():
        return tree
    matrix.WORK = WORK
    tree = matrix.bootstrap(release, log)
    host = os.uname().nodename
    lines = (
        f"apt-get -qq update && apt-get -qq -y --no-install-recommends install {SLURM} busybox-static squashfs-tools procps"
        " util-linux && adduser --quiet --disabled-password --gecos '' carol && mkdir -p /etc/slurm"
    )
    policy = tree / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    (tree / "src").mkdir(exist_ok=True)
    (tree / "etc/apt/apt.conf.d/yes").write_text('APT::Get::Assume-Yes "1";\n')
    matrix.inside(tree, "env", "DEBIAN_FRONTEND=noninteractive", "sh", "-c", lines, log=log)
    (tree / "etc/slurm/slurm.conf").write_text(SLURM_CONF.replace("HOST", host))
    if release != "bookworm":
        (tree / "etc/slurm/cgroup.conf").write_text("CgroupPlugin=disabled\n")
    (tree / "ready").touch()
    return tree


def attempt(release: str, way: str) -> dict[str, str]:
    """Try one way in a fresh copy of the release's tree; return each stage's result."""
    (WORK / release).mkdir(parents=True, exist_ok=True)
    log = WORK / release / f"log.{way}"
    log.unlink(missing_ok=True)
    said = WORK / release / f"stages.{way}"
    said.write_text("")
    try:
        tree = base(release, log)
        matrix.copy_checkout(tree)
        script = COMMON + WAY[way]
        for name, text in documented().items():
            script = script.replace(f"@{name}@\n", text)
        over = WORK / release / "over"
        over.mkdir(exist_ok=True)
        env = {**os.environ, "LENT": " ".join(matrix.lent()), "ENTER_TREE": matrix.ENTER, "HOME": "/root"}
        env |= {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
        env |= {"TERM": "dumb", "STATIC": static()}
        new = ["unshare", "--mount", "--pid", "--ipc", "--fork", "--kill-child", "--propagation", "private"]
        with said.open("ab") as stages:
            inner = ["bash", "-xc", f"exec 3>&{stages.fileno()}; {script}"]
            matrix.run(
                *new, "bash", "-c", ENTER, "enter", tree, over, *inner, log=log, env=env, timeout=STEP_SECONDS,
                pass_fds=(stages.fileno(),),
            )  # fmt: skip
    except matrix.Failed as error:
        print(f"{release}, {way}: {error}", file=sys.stderr)
    except subprocess.TimeoutExpired:
        print(f"{release}, {way}: no end after {STEP_SECONDS} s", file=sys.stderr)
    done = re.findall(r"^STAGE (\S+)$", said.read_text(), re.M)
    return {stage: "yes" if stage in done else "NO" for stage in STAGES}


def static() -> str:
    """Return the packages that the README has for the programs' static libraries."""
    makefile = (HERE / "Makefile").read_text()
    return " ".join(
        sorted(set(re.findall(r"\blib(?:deflate|lzma|lz4|zstd|lzo2|squashfuse)-dev\b|\bzlib1g-dev\b", makefile)))
    )


def main() -> int:
    """Try every way on every release that the command line names; return the exit status."""
    parser = argparse.ArgumentParser(description="Try the documented ways to install on fresh machines.")
    parser.add_argument("--way", action="append", choices=WAYS, help="one of the ways [all]")
    parser.add_argument("releases", nargs="*", metavar="RELEASE", default=list(RELEASES))
    wanted = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("must be root")
    lines = [f"{'':22}" + "".join(f"{stage:>9}" for stage in STAGES) + "  seconds"]
    good = True
    for release in wanted.releases:
        for way in wanted.way or WAYS:
            started = time.monotonic()
            row = attempt(release, way)
            good &= set(row.values()) == {"yes"}
            lines.append(f"{release + ', ' + way:22}" + "".join(f"{row[stage]:>9}" for stage in STAGES)
                         + f"{time.monotonic() - started:9.0f}")  # fmt: skip
            print(lines[-1], flush=True)
    (WORK / "table.txt").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return not good


if __name__ == "__main__":
    sys.exit(main())
