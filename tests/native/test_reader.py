# SPDX-License-Identifier: Apache-2.0
"""Our SquashFS reader against the kernel's: the same answer to every request about the same image."""

from __future__ import annotations

import os
import random
import socket
import stat
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .mounted import by_kernel, differences, served

FULL = os.environ.get("CHAOS") == "full"
SEED = int(os.environ.get("SEED", "17"))

# The options of mksquashfs, and of gensquashfs and tar2sqfs, which share theirs.
MKSQUASHFS = [
    "-comp gzip",
    "-comp xz -b 1M -Xbcj x86",
    "-comp zstd -b 4K -no-exports",
    "-comp lz4 -Xhc -no-fragments",
    "-comp lzo -b 1M -always-use-fragments",
    "-comp lzo -Xalgorithm lzo1x_1 -b 16K",
    "-comp gzip -b 4K -noI -noId -noD -noF -noX -no-duplicates",
    "-comp gzip -b 256K -always-use-fragments -no-sparse -no-xattrs",
]
MORE = [
    f"-comp {compression} -b {size} {how}"
    for compression in ("gzip", "xz", "zstd", "lz4", "lzo")
    for size in ("4K", "64K", "128K", "1M")
    for how in ("", "-no-fragments", "-always-use-fragments -noX", "-noD -noF", "-noI")
]
OTHERS = [
    "gensquashfs -c gzip -b 4096 -e",
    "gensquashfs -c xz -b 1048576 -T",
    "tar2sqfs -c zstd -b 131072 -T",
    "tar2sqfs -c lzo -b 65536 -e",
    "tar2sqfs -c lz4 -b 8192",
]


def text(dice: random.Random, size: int) -> bytes:
    """Return bytes that can be compressed to half."""
    return (b"".join(dice.randbytes(8) + bytes(8) for _ in range(size // 16 + 1)))[:size]


def fill(root: Path) -> None:
    """Make every kind of inode, in sizes around the critical ones."""
    dice = random.Random(SEED)
    for size in (0, 1, 4095, 4096, 4097, 8192, 65537, 131071, 131072, 131073, 1_200_001):
        (root / f"text{size}").write_bytes(text(dice, size))
        (root / f"noise{size % 299_993}").write_bytes(dice.randbytes(size % 299_993))
    (root / "twice").write_bytes((root / "text65537").read_bytes())
    with open(root / "holes", "wb") as file:
        for at in (700_001, 3 << 20, 7 << 20):
            file.seek(at)
            file.write(dice.randbytes(5000))
        file.truncate(9 << 20)
    (root / "hole").touch()
    os.truncate(root / "hole", 3 << 20)
    many = root / "many"
    many.mkdir()
    for number in range(700):
        (many / f"{number % 7}{number:05}{'n' * (number % 211)}").write_bytes(text(dice, number % 97))
    for name in ("one", "one/two", "empty", "a" * 255):
        (root / name).mkdir()
    (root / "one/two/name \\ \n\x7fé").touch()
    (root / ("b" * 255)).touch()
    os.link(root / "text4097", root / "one/hard")
    for number, target in enumerate(("x", "../..", "t" * 4095, "/" * 300)):
        (root / f"link{number}").symlink_to(target)
    os.mkfifo(root / "fifo", 0o640)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(root / "socket"))
    for name, kind, major, minor in (("null", stat.S_IFCHR, 1, 3), ("disk", stat.S_IFBLK, 259, 70_000)):
        os.mknod(root / name, kind | 0o600, os.makedev(major, minor))
    (root / "modes").mkdir(mode=0o1777)
    for mode in (0, 0o4755, 0o2711, 0o777):
        (root / f"modes/{mode}").touch()
        (root / f"modes/{mode}").chmod(mode)
    for number, owner in enumerate((1, 65534, 4_000_000_000)):
        os.chown(root / f"link{number}", owner, owner + 1, follow_symlinks=False)
    for number, seconds in enumerate((0, 1, 1 << 31, (1 << 32) - 1)):
        os.utime(root / f"modes/{(0, 0o4755, 0o2711, 0o777)[number]}", (0, seconds))
    attributes(root)


def attributes(root: Path) -> None:
    """Give attributes to each kind of inode: short, empty, shared, large ones, with long names."""
    for name in ("text1", "one", "many", "text1200001"):
        os.setxattr(root / name, "user.colour", b"blue")
    for name in ("one", "link0", "fifo", "null", "disk", "socket", "many", "text65537", "empty"):
        os.setxattr(root / name, "trusted." + "n" * 200, b"", follow_symlinks=False)
        os.setxattr(root / name, "trusted.large", b"v" * 3000, follow_symlinks=False)
        os.setxattr(root / name, "security.ours", name.encode(), follow_symlinks=False)
    os.setxattr(root / "text0", "user.size", random.Random(1).randbytes(40_000))
    for number in range(200):
        os.setxattr(root / "text0", f"user.number{number}", b"%d" % number)


@pytest.fixture(scope="module")
def world_tmp(world_tmp: Path) -> Iterator[Path]:
    """A tmpfs: others, such as ext4, have no room for the attributes that are tried here."""
    place = world_tmp / "reader"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", "-l", place], check=True)
    place.rmdir()


@pytest.fixture(scope="module")
def tree(world_tmp: Path) -> Path:
    root = world_tmp / "reader-tree"
    root.mkdir()
    fill(root)
    return root


def pack(tree: Path, image: Path, packing: str) -> None:
    words = packing.split()
    if words[0] == "gensquashfs":
        subprocess.run([*words, "-q", "-x", "-k", "-D", tree, image], check=True, capture_output=True, timeout=120)
    elif words[0] == "tar2sqfs":
        tar = ["tar", "--format=pax", "--xattrs", "--xattrs-include=*", "--sparse", "-C", str(tree), "-c", "."]
        with subprocess.Popen(tar, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as archive:
            subprocess.run([*words, "-q", image], check=True, stdin=archive.stdout, capture_output=True, timeout=120)
    else:
        command = ["mksquashfs", tree, image, *words, "-quiet", "-no-progress", "-noappend"]
        subprocess.run(command, check=True, capture_output=True, timeout=120)


@pytest.fixture
def image(world_tmp: Path) -> Iterator[Path]:
    path = world_tmp / "reader.sqfs"
    yield path
    path.unlink(missing_ok=True)


def compare(image: Path, *words: str, offset: int = 0) -> None:
    with by_kernel(image, offset) as kernel, served(image, *words) as (ours, process):
        assert differences(ours, kernel, SEED) == []
        assert process.poll() is None


@pytest.mark.parametrize("packing", [*MKSQUASHFS, *(MORE if FULL else ()), *OTHERS])
def test_as_the_kernel_sees_it(tree: Path, image: Path, packing: str) -> None:
    pack(tree, image, packing)
    compare(image)


def test_tables_of_many_blocks(image: Path, world_tmp: Path) -> None:
    """More owners, fragments, attributes, inodes and sizes than one block of their tables holds; long listings."""
    root = world_tmp / "reader-many"
    root.mkdir()
    dice = random.Random(SEED)
    (root / "long").write_bytes(b"".join(b"%4096d" % number for number in range(5000)))
    for number in range(2200):
        path = root / f"{number:04}{'n' * 60}"
        path.write_bytes(dice.randbytes(1500) if number < 1700 else b"")
        os.chown(path, 10_000 + number, 0)
        os.setxattr(path, "user.number", b"%d" % number)
    pack(root, image, "-b 4K -comp zstd -Xcompression-level 1")
    subprocess.run(["rm", "-rf", str(root)], check=True)
    compare(image)


def test_files_beyond_4_gib(image: Path, world_tmp: Path) -> None:
    """A block's position depends on all blocks before it: read at random places, forwards and backwards."""
    root = world_tmp / "reader-large"
    root.mkdir()
    with open(root / "large", "wb") as file:
        for number in range(0, (4 << 30) + 17, 97 << 20):
            file.seek(number)
            file.write(b"%d" % number * 30_000)
        file.truncate((4 << 30) + (200 << 20) + 17)
    (root / "small").touch()
    pack(root, image, "tar2sqfs -c lz4 -b 16384")
    subprocess.run(["rm", "-rf", str(root)], check=True)
    compare(image)


def test_listings_whose_size_counts_no_dots(image: Path, world_tmp: Path) -> None:
    """squashfs-tools-ng 1.0 (bullseye's) gives a listing's own size, three less than others; the kernel takes both."""
    root = world_tmp / "reader-dots"
    marks = {"": 1_600_000_001, "long": 1_600_000_002, "empty": 1_600_000_003, "one": 1_600_000_004}
    for name in filter(None, marks):
        (root / name).mkdir(parents=True)
    for number in range(900):
        (root / f"long/{number:03}{'n' * 80}").touch()
    (root / "one/x").touch()
    for name, seconds in reversed(marks.items()):
        os.utime(root / name, (0, seconds))
    pack(root, image, "-noI")
    subprocess.run(["rm", "-rf", str(root)], check=True)
    data = bytearray(image.read_bytes())
    for seconds in marks.values():
        # An inode: type, mode, owner, group (2 bytes each), time, number (4 each); then a directory's own.
        inode = data.index(struct.pack("<I", seconds)) - 8
        assert data.count(struct.pack("<I", seconds)) == 1
        at, form = {1: (inode + 24, "<H"), 8: (inode + 20, "<I")}[data[inode]]
        struct.pack_into(form, data, at, struct.unpack_from(form, data, at)[0] - 3)
    image.write_bytes(data)
    compare(image)


@pytest.mark.parametrize("offset", [1, 4096, 1_000_003])
def test_an_image_within_a_file(tree: Path, image: Path, world_tmp: Path, offset: int) -> None:
    plain = world_tmp / "reader-plain.sqfs"
    pack(tree / "one", plain, "-comp gzip")
    image.write_bytes(random.Random(offset).randbytes(offset) + plain.read_bytes())
    plain.unlink()
    with served(image, "-o", f"offset={offset}") as (ours, _):
        assert differences(ours, tree / "one") == []


NAMES = st.text("ab./~é", min_size=1, max_size=30).filter(lambda name: "/" not in name and name.strip("."))
ENTRIES = st.lists(
    st.tuples(
        st.lists(NAMES, min_size=1, max_size=4),
        st.sampled_from(["file", "file", "file", "holes", "link", "directory", "fifo"]),
        st.integers(0, 300_000),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=25,
)
PACKINGS = st.sampled_from([*MKSQUASHFS, *MORE, *OTHERS])


@settings(
    max_examples=400 if FULL else 8, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(entries=ENTRIES, packing=PACKINGS)
def test_any_tree(image: Path, world_tmp: Path, entries: list[tuple[list[str], str, int, int]], packing: str) -> None:
    root = world_tmp / "reader-any"
    root.mkdir()
    dice = random.Random(len(entries))
    try:
        (root / "first").touch()
        for pieces, kind, size, attribute_count in entries:
            path = root.joinpath(*pieces)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                if path.parent.resolve() != path.parent or os.path.lexists(path):
                    continue
            except OSError:  # there is something else
                continue
            make(path, kind, size, dice)
            for number in range(attribute_count):
                os.setxattr(path, f"trusted.{number}", dice.randbytes(size % 999), follow_symlinks=False)
        image.unlink(missing_ok=True)
        pack(root, image, packing)
        compare(image)
    finally:
        subprocess.run(["rm", "-rf", str(root)], check=True)


def make(path: Path, kind: str, size: int, dice: random.Random) -> None:
    if kind == "file":
        path.write_bytes(text(dice, size) if size % 2 else dice.randbytes(size))
    elif kind == "holes":
        with open(path, "wb") as file:
            for _ in range(3):
                file.seek(size, os.SEEK_CUR)
                file.write(dice.randbytes(size % 5000))
    elif kind == "link":
        path.symlink_to("t" * (1 + size % 4000))
    elif kind == "directory":
        path.mkdir()
    else:
        os.mkfifo(path)
