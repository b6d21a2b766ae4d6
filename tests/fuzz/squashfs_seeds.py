# SPDX-License-Identifier: Apache-2.0
"""Images for the SquashFS reader's fuzzer to change: `squashfs_seeds.py DIRECTORY`; needs root.

Small, and most with plain metadata, so that a field can be changed where it
is. Together they have every structure in more than one block of its table.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
import sys
from pathlib import Path

PLAIN = ["-noI", "-noId", "-noX"]


def kinds(root: Path) -> None:
    """Each kind of inode, short and extended; blocks, tails, holes."""
    dice = random.Random(1)
    for name, size in (("empty", 0), ("small", 100), ("tail", 9000), ("blocks", 8192)):
        (root / name).write_bytes(dice.randbytes(size // 2) + bytes(size - size // 2))
    with open(root / "holes", "wb") as file:
        file.seek(20_000)
        file.write(b"data")
        file.truncate(60_000)
    os.link(root / "tail", root / "hard")
    (root / "link").symlink_to("small")
    (root / "other").symlink_to("t" * 300)
    os.mkfifo(root / "fifo")
    os.mkfifo(root / "fifo2")
    for number, kind in enumerate((stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK)):
        for extended in "xy":
            os.mknod(root / f"node{number}{extended}", kind | 0o600, os.makedev(300, 70_000))
    (root / "directory" / "below").mkdir(parents=True)
    (root / "directory" / "file").write_bytes(dice.randbytes(5000))
    (root / "nothing").mkdir()
    for name in ("small", "tail", "other", "fifo", "node0x", "node1x", "node2x", "directory"):
        os.setxattr(root / name, "trusted.name", name.encode(), follow_symlinks=False)
        os.setxattr(root / name, "security.large", b"v" * 400, follow_symlinks=False)
    os.setxattr(root / "small", "user.colour", b"blue")


def long(root: Path) -> None:
    """A directory with an index, below another."""
    (root / "a").mkdir()
    for number in range(700):
        (root / "a" / f"{number:03}{'n' * (number % 50)}").touch()
    (root / "b").touch()


def owners(root: Path) -> None:
    """Two blocks of owners."""
    for number in range(2060):
        (root / f"{number:x}").touch()
        os.chown(root / f"{number:x}", 7 * number, 0)


def fragments(root: Path) -> None:
    """Two blocks of fragments; files of two blocks and a tail."""
    for number in range(530):
        (root / f"{number:x}").write_bytes(f"{number:9}".encode() * 400)
    (root / "zz").write_bytes(b"z" * 9000)


def sparse(root: Path) -> None:
    """Lists of more blocks than one of metadata holds."""
    for name, step in (("one", 4096 * 7), ("two", 4096 * 90)):
        with open(root / name, "wb") as file:
            for at in range(0, 4096 * 4500, step):
                file.seek(at)
                file.write(b"%d" % at)


def attributes(root: Path) -> None:
    """More attributes than one block holds, many of them shared."""
    for number in range(560):
        (root / f"{number:x}").touch()
        os.setxattr(root / f"{number:x}", "user.number", b"%d" % number)
        os.setxattr(root / f"{number:x}", "trusted.shared", b"s" * 100)


SEEDS = [
    ("kinds", kinds, ["-b", "4K", *PLAIN, "-noD", "-noF"]),
    ("kinds-no-fragments", kinds, ["-b", "4K", *PLAIN, "-no-fragments"]),
    ("kinds-1M", kinds, ["-b", "1M", *PLAIN]),
    ("long", long, PLAIN),
    ("owners", owners, [*PLAIN, "-no-exports"]),
    ("fragments", fragments, ["-b", "4K", *PLAIN]),
    ("sparse", sparse, ["-b", "4K", *PLAIN]),
    ("attributes", attributes, PLAIN),
    *((f"kinds-{name}", kinds, ["-b", "4K", "-comp", name]) for name in ("gzip", "xz", "lz4", "zstd", "lzo")),
    *((f"long-{name}", long, ["-b", "64K", "-comp", name]) for name in ("zstd", "lzo")),
]


def make(directory: Path) -> list[Path]:
    """Write all seeds to `directory`; returns them."""
    directory.mkdir(parents=True, exist_ok=True)
    root = directory / "tree"
    made = []
    for name, fill, packing in SEEDS:
        root.mkdir()
        fill(root)
        to = directory / f"{name}.sqfs"
        command = ["mksquashfs", root, to, *packing, "-all-time", "0", "-mkfs-time", "0"]
        subprocess.run([*command, "-quiet", "-no-progress", "-noappend", "-nopad"], check=True, capture_output=True)
        made.append(to)
        if name in ("kinds", "long"):
            other = directory / f"{name}-ng.sqfs"
            subprocess.run(["gensquashfs", "-q", "-f", "-x", "-e", "-D", root, other], check=True, capture_output=True)
            made.append(other)
        shutil.rmtree(root)
    return made


if __name__ == "__main__":
    print(*make(Path(sys.argv[1])), sep="\n")
