# SPDX-License-Identifier: Apache-2.0
"""Impossible superblocks, or tables that they lead to: such an image is not served at all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from .fuse_wire import Server
from .plain_image import EVERYTHING, Plain, pack


@pytest.fixture(scope="module")
def plain(world_tmp: Path) -> bytes:
    return pack(world_tmp)


SUPERBLOCK: list[tuple[str, int, int, int | Callable[[Plain], int]]] = [
    ("a block size of 2 KiB", 12, 4, 2048),
    ("another block size than its logarithm", 12, 4, 8192),
    ("no users", 26, 2, 0),
    ("inodes in the superblock", 64, 8, 95),
    ("no inodes", 64, 8, partial(Plain.super, at=72, size=8)),
    ("directories beyond the end", 72, 8, lambda i: len(i.data) + 1),
    ("users beyond the end", 48, 8, lambda i: len(i.data)),
    ("users before the directories", 48, 8, 96),
    ("more fragments than there is room for", 16, 4, EVERYTHING),
    ("fragments beyond the end", 80, 8, lambda i: len(i.data)),
    ("fragments before the directories", 80, 8, 96),
    ("fragments behind the users", 80, 8, partial(Plain.super, at=48, size=8)),
    ("attributes beyond the end", 56, 8, lambda i: len(i.data) - 15),
    ("attributes in the superblock", 56, 8, 4),
]


@pytest.mark.parametrize(
    ("at", "size", "value"), [case[1:] for case in SUPERBLOCK], ids=[case[0] for case in SUPERBLOCK]
)
def test_a_superblock_that_can_not_be(plain: bytes, tmp_path: Path, at: int, size: int, value: object) -> None:
    image = Plain(plain)
    number = value(image) if callable(value) else value
    assert isinstance(number, int)
    image.put(list(range(at, at + size)), number)
    if at == 12 and number == 2048:
        image.put([22, 23], 11)
    refused(image, tmp_path, "the image is damaged: its superblock\n")


def refused(image: Plain, tmp_path: Path, last: str) -> None:
    (tmp_path / "image.sqfs").write_bytes(image.data)
    status, said = Server(tmp_path / "image.sqfs").end()
    assert status == 1 and said.endswith(last) and said.count("\n") <= 2, said


def test_tables_that_can_not_be(plain: bytes, tmp_path: Path) -> None:
    """Values in an array's index and in the attributes' header are checked like those of the superblock."""
    for pointer, place, number in ((48, 0, 90), (80, 0, 90), (56, 16, 90), (56, 0, 1 << 40), (56, 8, EVERYTHING)):
        image = Plain(plain)
        at = image.super(pointer, 8) + place
        image.put(list(range(at, at + (4 if place == 8 else 8))), number)
        refused(image, tmp_path, "the image is damaged: its superblock\n")
        for beyond in (0, 1):  # the blocks come before the index
            image = Plain(plain)
            at = image.super(pointer, 8) + (16 if pointer == 56 else 0)
            image.put(list(range(at, at + 8)), image.super(pointer, 8) + beyond)
            refused(image, tmp_path, "the image is damaged: its superblock\n")


def test_a_root_that_is_no_directory(plain: bytes, tmp_path: Path) -> None:
    image = Plain(plain)
    image.put(list(range(32, 40)), image.entries(image.inode(""))[b"small"][1])
    refused(image, tmp_path, "the image is damaged: its root directory\n")
