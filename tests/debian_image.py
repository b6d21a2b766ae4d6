# SPDX-License-Identifier: Apache-2.0
"""An image of Debian, made as docs/first-image.rst has it, from the mirror that this machine's apt uses.

It is made once and kept below build/, by the first test that needs it, or beforehand by `python -m tests.debian_image`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests import documented, own_view

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "build/debian"
SECONDS = 1200
# For the plots; Debian's own package depends on compilers.
WHEELS = "matplotlib"
MODULES = "/usr/local/lib/python3.11/dist-packages"
# Further files in the image: an answer to ssh, and a small package to install in /opt.
SERVER = "openssh-server"
PACKAGE = "hello"
# What pip builds a package with.
BUILDERS = "setuptools wheel"


def mirror() -> str:
    """Return the mirror of this machine's own release, from apt's configuration."""
    columns = "$(SITE)|$(CREATED_BY)|$(COMPONENT)|$(ORIGIN)"
    said = subprocess.run(
        ["apt-get", "indextargets", "--format", columns], check=True, capture_output=True, text=True
    ).stdout
    for line in said.splitlines():
        site, kind, component, origin = line.split("|")
        if (kind, component, origin) == ("Packages", "main", "Debian") and "security" not in site:
            return site
    raise AssertionError("apt has no source for Debian")


def script() -> str:
    """Return the page's commands, and those for what the tests need in addition."""
    debootstrap, install, *pack = documented.blocks("docs/first-image.rst", "task")["own-image"].splitlines()
    pip = f"{sys.executable} -m pip"
    return "\n".join(
        [
            f"{debootstrap} {mirror()}",
            "export DEBIAN_FRONTEND=noninteractive",
            install.partition("#")[0],
            f"chroot tree apt-get install -y --no-install-recommends {SERVER}",
            f"chroot tree sh -c 'cd /opt && apt-get download {PACKAGE}'",
            f"{pip} install --quiet --python-version 3.11 --only-binary=:all: {WHEELS} --target tree{MODULES}",
            f"{pip} download --quiet --dest tree/opt/wheels --only-binary=:all: {BUILDERS}",
            "rm -rf tree/var/cache/apt/* tree/var/lib/apt/lists/*",
            *pack,
        ]
    )


def make() -> Path:
    """Return the image; make it unless there is one that these commands have made."""
    text = script()
    made, image = KEPT / "made-by", KEPT / "foo.sqfs"
    if made.exists() and image.exists() and made.read_text() == text:
        return image
    KEPT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=KEPT) as place, own_view.machines_network():
        done = subprocess.run(
            ["bash", "-ec", text],
            check=False, cwd=place, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", timeout=SECONDS, env={**os.environ, "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-4000:]
        shutil.move(Path(place) / "foo.sqfs", image)
    image.chmod(0o644)
    made.write_text(text)
    return image


if __name__ == "__main__":
    print(make())
