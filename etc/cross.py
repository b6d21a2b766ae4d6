#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Build all C for aarch64 with Debian's cross compiler, and run it by qemu-user as far as that can.

    cross.py [--clean]

Works in a tree of its own below build/matrix/, as matrix.py does, so that this
machine gets neither a foreign architecture nor an interpreter for its programs.
aarch64.py does the work there, and its findings are printed. Exit status 1 if
something can't be built or doesn't do what it should. Needs root.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys

import matrix

RELEASE = "bookworm"
NATIVE = (
    "gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static make python3 squashfs-tools file fuse3"
    " build-essential crossbuild-essential-arm64 debhelper dh-python python3-click python3-docutils"
)
FOREIGN = (
    "libslurm-dev libdeflate-dev zlib1g-dev liblzma-dev liblzo2-dev liblz4-dev libzstd-dev libc6 libc6-dev libgcc-s1"
)
# Only unpacked, because the scripts of a second python3 would refuse an installation.
PYTHON = "python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libexpat1 libffi8 zlib1g libc6"

SET_UP = f"""
set -e
[ ! -e /cross-and-deb-ready ] || exit 0
export DEBIAN_FRONTEND=noninteractive
dpkg --add-architecture arm64
apt-get update -qq
apt-get install -qq -y --no-install-recommends {NATIVE} {" ".join(f"{name}:arm64" for name in FOREIGN.split())}
mkdir -p /arm64 && cd /arm64
apt-get download -qq {" ".join(f"{name}:arm64" for name in PYTHON.split())}
for package in *.deb; do dpkg -x $package /arm64; done
: > /cross-and-deb-ready
"""
SECONDS = 900


def main() -> int:
    """Build and try; return the exit status."""
    parser = argparse.ArgumentParser(description="Build for aarch64, and run what qemu-user can run.")
    parser.add_argument("--clean", action="store_true", help="make the tree anew")
    wanted = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("must be root")
    place = matrix.WORK / "aarch64"
    if wanted.clean:
        shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True, exist_ok=True)
    log = place / "log"
    log.unlink(missing_ok=True)
    print(f"aarch64: log in {log.relative_to(matrix.HERE)}", flush=True)
    tree = place / "tree"
    try:
        matrix.bootstrap(RELEASE, log, tree)
        matrix.copy_checkout(tree)
        matrix.inside(tree, "sh", "-c", SET_UP, log=log)
        report = place / "findings"
        report.unlink(missing_ok=True)
        matrix.inside(tree, "python3", "etc/aarch64.py", log=report, timeout=SECONDS)
    except matrix.Failed as error:
        print(f"aarch64: {error}", file=sys.stderr)
        return 1
    except subprocess.SubprocessError as error:
        print(f"aarch64: {error}", file=sys.stderr)
        return 1
    print(report.read_text(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
