# SPDX-License-Identifier: Apache-2.0
"""A SquashFS image in which nothing is compressed, and where in it each field is."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

BLOCK = 4096
KEPT = random.Random(1).randbytes(BLOCK)  # in no fragment
EVERYTHING = 0xFFFFFFFF


def pack(place: Path) -> bytes:
    """Make an image below `place`: files with and without a tail, a long directory, shared attributes."""
    root = place / "damage"
    dice = random.Random(4)
    for name in ("dir", "many", "kept"):
        (root / name).mkdir(parents=True)
    (root / "kept/file").write_bytes(KEPT)
    (root / "big").write_bytes(dice.randbytes(3 * BLOCK + 100))
    (root / "blocks").write_bytes(dice.randbytes(2 * BLOCK))
    (root / "small").write_bytes(b"small")
    (root / "link").symlink_to("small")
    (root / "dir/aa").touch()
    (root / "dir/bb").touch()
    (root / "dir/cc").touch()
    for number in range(900):
        os.link(root / "dir/aa", root / f"many/{number:03}{'n' * 80}")
    for name in ("one", "two"):
        (root / name).touch()
        os.setxattr(root / name, f"trusted.of-{name}", b"v" * 20)
        os.setxattr(root / name, "trusted.shared", b"s" * 300)
    image = place / "damage.sqfs"
    command = ["mksquashfs", root, image, "-noI", "-noD", "-noF", "-noX", "-b", "4K", "-all-time", "0", "-nopad"]
    subprocess.run([*command, "-quiet", "-no-progress", "-noappend"], check=True, capture_output=True, timeout=60)
    data = image.read_bytes()
    subprocess.run(["rm", "-rf", root, image], check=True)
    return data


class Table:
    """A table's uncompressed metadata blocks as one sequence of bytes, with each byte's place in the image."""

    def __init__(self, image: Plain, start: int, end: int) -> None:
        self.places: list[int] = []
        self.begins: dict[int, int] = {}
        at = start
        while at < end:
            size = image.get([at, at + 1])
            assert size & 0x8000, "a compressed block"
            self.begins[at - start] = len(self.places)
            self.places += range(at + 2, at + 2 + (size & 0x7FFF))
            at += 2 + (size & 0x7FFF)

    def at(self, reference: int) -> int:
        return self.begins[reference >> 16] + (reference & 0xFFFF)

    def field(self, at: int, size: int) -> list[int]:
        return self.places[at : at + size]


class Plain:
    """An uncompressed image; a field is a list of places, of one byte each."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)
        self.inodes = Table(self, self.super(64, 8), self.super(72, 8))
        self.directories = Table(self, self.super(72, 8), self.word(self.super(80, 8), 8))

    def get(self, field: list[int]) -> int:
        return int.from_bytes(bytes(self.data[at] for at in field), "little")

    def put(self, field: list[int], value: int) -> None:
        for at, byte in zip(field, value.to_bytes(len(field) + 1, "little")):
            self.data[at] = byte

    def word(self, at: int, size: int) -> int:
        return self.get(list(range(at, at + size)))

    def super(self, at: int, size: int) -> int:
        return self.word(at, size)

    def inode(self, path: str) -> int:
        """Return where an inode begins in its table."""
        at = self.inodes.at(self.super(32, 8))
        for name in filter(None, path.split("/")):
            at = self.inodes.at(self.entries(at)[name.encode()][1])
        return at

    def of(self, path: str, basic: tuple[int, int], extended: tuple[int, int] = (0, 0)) -> list[int]:
        """Return a field of an inode: where it is from the inode's beginning, and its size, by kind."""
        at = self.inode(path)
        place, size = basic if self.get(self.inodes.field(at, 2)) <= 7 else extended
        assert size, f"{path} is not of this kind"
        return self.inodes.field(at + place, size)

    def listing(self, inode: int) -> tuple[int, int]:
        """Return where a directory's listing begins in its table, and its size."""
        long = self.get(self.inodes.field(inode, 2)) == 8
        block = self.get(self.inodes.field(inode + (24 if long else 16), 4))
        offset = self.get(self.inodes.field(inode + (34 if long else 26), 2))
        size = self.get(self.inodes.field(inode + (20 if long else 24), 4 if long else 2))
        return self.directories.at(block << 16 | offset), size - 3

    def entries(self, inode: int) -> dict[bytes, tuple[int, int]]:
        """Return where each entry of a directory is, and its inode's reference."""
        at, size = self.listing(inode)
        end, left, block, found = at + size, 0, 0, {}
        while at < end:
            if not left:
                left = self.get(self.directories.field(at, 4)) + 1
                block = self.get(self.directories.field(at + 4, 4))
                at += 12
            left -= 1
            offset = self.get(self.directories.field(at, 2))
            length = self.get(self.directories.field(at + 6, 2)) + 1
            name = bytes(self.data[place] for place in self.directories.field(at + 8, length))
            found[name] = (at, block << 16 | offset)
            at += 8 + length
        return found

    def entry(self, path: str, place: int, size: int) -> list[int]:
        directory, _, name = path.rpartition("/")
        return self.directories.field(self.entries(self.inode(directory))[name.encode()][0] + place, size)

    def header(self, path: str, place: int) -> list[int]:
        return self.directories.field(self.listing(self.inode(path))[0] + place, 4)

    def array(self, pointer: int, number: int, entry: int, place: int, size: int) -> list[int]:
        """Return a field of an entry of an array (its first block): fragments, users, attributes."""
        at = self.word(self.super(pointer, 8) + (16 if pointer == 56 else 0), 8) + 2 + number * entry + place
        return list(range(at, at + size))

    def attribute(self, text: bytes, place: int, size: int) -> list[int]:
        """Return a field before (or in) the name of an attribute, which must be unique."""
        assert self.data.count(text) == 1
        at = self.data.index(text) + place
        return list(range(at, at + size))
