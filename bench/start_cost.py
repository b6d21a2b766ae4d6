# SPDX-License-Identifier: Apache-2.0
"""Count what a start of Python in a container costs the file system of its image: python -m bench.start_cost.

The image is seen through bindfs, a file system that passes everything on, and strace
counts what it is asked: so a look-up is one that the kernel could not answer itself,
as on a client of a file server. Needs root, bindfs, strace and an ordinary user. With --peer, Debian's
ch-run and apptainer are fetched and started as well. enroot isn't in Debian; with pyxis it unpacks the
whole file to the node's disk first, so its row is the file's size.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from . import peer, pull

_LINE = re.compile(r"^\d+ +(\w+)\((.*?)\) += (-?\d+)")
# For apptainer, the command follows the image directly.
_APPTAINERS_LAST = "--userns"
_SEPARATED: dict[str, list[str]] = {_APPTAINERS_LAST: []}
_PROGRAM = "import json, subprocess, logging, email, http.client; print(len(__import__('sys').modules))"


def make_image(root: Path) -> None:
    """Put the host's Python into a directory."""
    for name in ("bin", "dev", "proc", "sys", "tmp", "etc", "root", "home", "usr/bin", "usr/lib", "usr/lib64"):
        (root / name).mkdir(parents=True, exist_ok=True)
    real = Path(os.path.realpath("/usr/bin/python3"))
    shutil.copy(real, root / "usr/bin/python3")
    library = Path("/usr/lib") / real.name
    shutil.copytree(library, root / "usr/lib" / real.name, symlinks=True)
    (root / "lib").symlink_to("usr/lib")
    (root / "lib64").symlink_to("usr/lib64")
    needed = subprocess.run(["ldd", real, *library.rglob("*.so")], check=False, capture_output=True, text=True).stdout
    for path in {Path(found) for found in re.findall(r"(/lib\S*/\S+) \(0x", needed)}:
        to = root / "usr" / path.relative_to("/")
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, to)
    for name in ("passwd", "group", "hosts", "resolv.conf"):
        (root / "etc" / name).touch()


class Counted:
    """A directory that is seen through bindfs, and the requests to bindfs."""

    def __init__(self, real: Path, shown: Path, trace: Path) -> None:
        self._shown, self._trace = shown, trace
        calls = "trace=lstat,newfstatat,statx,openat,open,pread64,read,readlink,getdents64"
        command = ["strace", "-f", "-s0", "-e", calls, "-o", trace, "bindfs", "-f", real, shown]
        self._process = subprocess.Popen(command)
        while not os.path.ismount(shown):
            assert self._process.poll() is None
            time.sleep(0.02)
        self._begin = trace.stat().st_size

    def end(self) -> tuple[int, int, int]:
        """Unmount, and return the look-ups, opens and bytes read since the mount."""
        # The image's server may still be ending.
        while subprocess.run(["umount", self._shown], check=False, stderr=subprocess.DEVNULL).returncode:
            time.sleep(0.05)
        self._process.wait()
        looked = opened = size = 0
        for line in self._trace.read_text(errors="replace")[self._begin :].splitlines():
            found = _LINE.match(line)
            if not found:
                continue
            call, _, result = found.groups()
            looked += call in ("lstat", "newfstatat", "statx", "readlink")
            opened += call in ("openat", "open")
            if call in ("pread64", "getdents64") and int(result) > 0:
                size += int(result)
        return looked, opened, size


def start(image: Path, user: str, runner: Sequence[str]) -> None:
    """Start Python in a container of that image."""
    entry = pwd.getpwnam(user)
    command = [*runner, str(image), *_SEPARATED.get(runner[-1], ["--"]), "/usr/bin/python3", "-c", _PROGRAM]
    env = {"PATH": "/usr/bin:/bin", "HOME": entry.pw_dir}
    done = subprocess.run(
        command, check=True, user=entry.pw_uid, group=entry.pw_gid, extra_groups=[], cwd="/", stdout=subprocess.PIPE,
        env=env,
    )  # fmt: skip
    assert int(done.stdout) > 100


def apptainer(top: Path) -> list[str]:
    """Return the command that starts apptainer of Debian sid in its own tree."""
    tree = pull.tree(top, (*pull.PACKAGES, "squashfuse"))
    bound = ["--bind", tree, "/", "--dev-bind", "/dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"]
    words = ["bwrap", *bound, "--bind", top, top, "--setenv", "HOME", "/tmp", "apptainer", "--silent", "exec"]
    return [str(word) for word in (*words, "--no-home", "--no-mount", "cwd,hostfs", _APPTAINERS_LAST)]


def main() -> int:
    """Print one line for each kind of image: a first start on a node, and a second."""
    user = next((word for word in sys.argv[1:] if word != "--peer"), "chuser")
    with tempfile.TemporaryDirectory(prefix="start-cost-") as name:
        top = Path(name)
        top.chmod(0o755)
        real, shown = top / "real", top / "shown"
        shown.mkdir()
        make_image(real / "directory")
        pack = ["mksquashfs", real / "directory", real / "image.sqfs", "-comp", "zstd", "-Xcompression-level", "3"]
        subprocess.run([*pack, "-all-root", "-quiet", "-no-progress"], check=True)
        # A copy as --ch-broadcast makes it on a node.
        shutil.copy(real / "image.sqfs", top / "copy.sqfs")
        ours = [str(Path(sys.executable).with_name("slurm-ch")), "run"]
        peers: list[tuple[str, Path, list[str]]] = []
        if "--peer" in sys.argv:
            ch_run, theirs = [*peer.fetch(top).ch_run], apptainer(top)
            for what, image in (("directory", shown / "directory"), ("image.sqfs", shown / "image.sqfs")):
                peers += [(f"ch-run, {what}", image, ch_run), (f"apptainer, {what}", image, theirs)]
        rows = [
            ("directory", shown / "directory", ours),
            ("image.sqfs", shown / "image.sqfs", ours),
            ("broadcast", top / "copy.sqfs", ours),
            *peers,
        ]
        print(f"image.sqfs: {(real / 'image.sqfs').stat().st_size / 1e6:.1f} MB")
        print(f"{'':21} {'':8} look-ups  opens  MB read")
        for kind, image, runner in rows:
            for starts in (1, 2):
                counted = Counted(real, shown, top / f"trace-{kind}-{starts}")
                try:
                    for _ in range(starts):
                        start(image, user, runner)
                finally:
                    looked, opened, size = counted.end()
                print(
                    f"{kind:21} {starts} start{'s' if starts > 1 else ' '} {looked:8} {opened:6} {size / 1e6:8.1f}",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
