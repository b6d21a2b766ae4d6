# SPDX-License-Identifier: Apache-2.0
"""One number of an image that can't be, and what it costs: an error for who needs that place, one line, and nothing else.

Each check that the SquashFS reader makes has a case here that fails without it, or one in tests/fuzz.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Optional, Union

import pytest

from .fuse_wire import GETATTR, READDIR, READLINK, ROOT, Server
from .plain_image import BLOCK, EVERYTHING, KEPT, Plain, pack


@pytest.fixture(scope="module")
def plain(world_tmp: Path) -> bytes:
    return pack(world_tmp)


Request = Callable[[Server], object]


def node(server: Server, path: str) -> int:
    at = ROOT
    for name in path.split("/"):
        at = server.lookup(name.encode(), at)
        assert at
    return at


def look_up(path: str) -> Request:
    return lambda server: node(server, path)


def names(path: str) -> Request:
    return lambda server: server.names(node(server, path))


def read(path: str, offset: int = 0, size: int = 131072) -> Request:
    return lambda server: server.read(node(server, path), offset, size)


def attributes(path: str) -> Request:
    return lambda server: server.listxattr(node(server, path))


def attribute(path: str, name: bytes) -> Request:
    return lambda server: server.getxattr(node(server, path), name)


def target(path: str) -> Request:
    return lambda server: server.ask(READLINK, node(server, path))


START, FRAGMENT, FRAGMENT_OFFSET, SIZE = ((16, 4), (20, 4), (24, 4), (28, 4))
# What is damaged, the field, its new value (or how the old one changes), what needs it, what doesn't, the message.
Case = tuple[
    str, Callable[[Plain], list[int]], Union[int, Callable[[int], int]], Request, Optional[Request], str,
]  # fmt: skip
CASES: list[Case] = [
    # ---- Inodes
    ("type 0", lambda i: i.of("small", (0, 2)), 0, look_up("small"), names("dir"), "an inode's type"),
    ("type 15", lambda i: i.of("small", (0, 2)), 15, look_up("small"), read("big"), "an inode's type"),
    ("another type than its entry's", lambda i: i.of("small", (0, 2)), 6, look_up("small"), None, "an inode's type"),
    ("number 0", lambda i: i.of("small", (12, 4)), 0, look_up("small"), None, "an inode's number"),
    ("a number beyond all", lambda i: i.of("small", (12, 4)), lambda n: n + 1000, look_up("small"), None, "number"),
    ("no such user", lambda i: i.of("small", (4, 2)), 7, look_up("small"), None, "table of users"),
    ("no such group", lambda i: i.of("small", (6, 2)), 7, look_up("small"), None, "table of users"),
    ("no such fragment", lambda i: i.of("small", FRAGMENT), 99, look_up("small"), read("big"), "a file's inode"),
    ("a tail beyond a block", lambda i: i.of("small", FRAGMENT_OFFSET), BLOCK - 4, look_up("small"), None, "a file's"),
    (
        "a tail beyond the fragment",
        lambda i: i.of("small", FRAGMENT_OFFSET),
        BLOCK - 5,
        read("small"),
        None,
        "contents",
    ),
    (
        "more blocks than the table has room for",
        lambda i: i.of("big", SIZE),
        EVERYTHING,
        look_up("big"),
        None,
        "file's",
    ),
    (
        "a larger size than any",
        lambda i: i.of("many/000" + "n" * 80, (0, 0), (31, 1)),
        0x80,
        look_up("dir/aa"),
        None,
        "file",
    ),
    ("a target of 64 KiB", lambda i: i.of("link", (20, 4)), 65536, look_up("link"), None, "a link's inode"),
    ("a target longer than any path", lambda i: i.of("link", (20, 4)), 4097, target("link"), look_up("link"), "longer"),
    ("a target beyond the table", lambda i: i.of("link", (20, 4)), 4096, target("link"), look_up("link"), "inodes"),
    # ---- Contents
    ("a block's size", lambda i: i.of("big", (32, 4)), 1 << 24 | BLOCK + 1, read("big"), read("small"), "blocks"),
    ("a block before", lambda i: i.of("big", (32, 4)), BLOCK + 1, read("big", BLOCK, 5), read("small"), "blocks"),
    ("a fragment's size", lambda i: i.array(80, 0, 16, 8, 4), 1 << 24 | BLOCK + 1, read("small"), None, "stored size"),
    ("a fragment of nothing", lambda i: i.array(80, 0, 16, 8, 4), 1 << 24, read("small"), None, "contents"),
    ("a fragment beyond the end", lambda i: i.array(80, 0, 16, 0, 8), 1 << 40, read("small"), None, "image's end"),
    ("a fragment before the end", lambda i: i.array(80, 0, 16, 0, 8), lambda _: 2**64 - 4, read("small"), None, "end"),
    ("a block that is too short", lambda i: i.of("big", (32, 4)), 1 << 24 | BLOCK - 1, read("big"), None, "contents"),
    ("a block that can't be inflated", lambda i: i.of("big", (32, 4)), BLOCK, read("big"), None, "compressed data"),
    ("blocks beyond the end", lambda i: i.of("blocks", START), 1 << 30, read("blocks"), read("small"), "blocks"),
    (
        "the last block of no tail is short",
        lambda i: i.of("blocks", (36, 4)),
        1 << 24 | 5,
        read("blocks"),
        None,
        "contents",
    ),
    (
        "a block longer than what is left",
        lambda i: i.of("blocks", SIZE),
        2 * BLOCK - 5,
        read("blocks"),
        None,
        "contents",
    ),
    # ---- Directories
    ("257 entries", lambda i: i.header("dir", 0), 256, names("dir"), look_up("many"), "a directory's header"),
    (
        "more entries than there are",
        lambda i: i.header("dir", 0),
        3,
        names("dir"),
        look_up("many"),
        "a directory's size",
    ),
    (
        "a size beyond the entries",
        lambda i: i.of("dir", (24, 2)),
        lambda n: n + 5,
        names("dir"),
        None,
        "directory's size",
    ),
    ("a size within an entry", lambda i: i.of("dir", (24, 2)), lambda n: n - 4, names("dir"), look_up("dir"), "size"),
    (
        "a listing beyond the table",
        lambda i: i.of("dir", (16, 4)),
        1 << 20,
        names("dir"),
        look_up("dir"),
        "directories",
    ),
    ("a listing beyond its block", lambda i: i.of("dir", (26, 2)), 8193, names("dir"), look_up("dir"), "directories"),
    ("an entry of no type", lambda i: i.entry("dir/bb", 4, 2), 0, names("dir"), None, "a directory's entry"),
    ("an entry of a long type", lambda i: i.entry("dir/bb", 4, 2), 9, names("dir"), None, "a directory's entry"),
    ("a name of 257", lambda i: i.entry("dir/bb", 6, 2), 256, names("dir"), look_up("many"), "a directory's entry"),
    ("a slash", lambda i: i.entry("dir/bb", 8, 1), ord("/"), names("dir"), None, "a directory's names"),
    ("a NUL", lambda i: i.entry("dir/bb", 9, 1), 0, names("dir"), None, "a directory's names"),
    ("two dots", lambda i: i.entry("dir/aa", 8, 2), 0x2E2E, names("dir"), None, "a directory's names"),
    ("an inode beyond the table", lambda i: i.header("dir", 4), 1 << 20, look_up("dir/bb"), names("dir"), "inodes"),
    ("an inode beyond its block", lambda i: i.entry("dir/bb", 0, 2), 0xFFFF, look_up("dir/bb"), names("dir"), "inodes"),
    # ---- Attributes
    (
        "no such attributes",
        lambda i: i.of("one", (0, 0), (52, 4)),
        99,
        attributes("one"),
        attributes("two"),
        "attributes",
    ),
    ("attributes beyond the table", lambda i: i.array(56, 0, 16, 0, 8), 1 << 40, attributes("one"), None, "attributes"),
    ("an empty name", lambda i: i.attribute(b"of-one", -2, 2), 0, attributes("one"), attributes("two"), "name"),
    ("a name of 256", lambda i: i.attribute(b"of-one", -2, 2), 256, attributes("one"), attributes("two"), "name"),
    ("no such prefix", lambda i: i.attribute(b"of-one", -4, 2), 3, attributes("one"), attributes("two"), "name"),
    ("a NUL in a name", lambda i: i.attribute(b"of-one", 1, 1), 0, attributes("one"), attributes("two"), "name"),
    (
        "a value of more than 64 KiB",
        lambda i: i.attribute(b"of-one", 6, 4),
        65537,
        attribute("one", b"trusted.of-one"),
        None,
        "value",
    ),
    (
        "one before another",
        lambda i: i.attribute(b"of-one", 6, 4),
        65537,
        attributes("one"),
        attributes("two"),
        "value",
    ),
]


def test_the_image_is_whole(plain: bytes, tmp_path: Path) -> None:
    (tmp_path / "image.sqfs").write_bytes(plain)
    server = Server(tmp_path / "image.sqfs")
    server.init()
    for _, _, _, needs, other, _ in CASES:
        needs(server)
        if other:
            other(server)
    assert server.end() == (0, "")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_a_damaged_number(plain: bytes, tmp_path: Path, case: Case) -> None:
    _, field, value, needs, other, line = case
    image = Plain(plain)
    where = field(image)
    image.put(where, value(image.get(where)) if callable(value) else value)
    check(image, tmp_path, needs, other, line)


def check(image: Plain, tmp_path: Path, needs: Request, other: Request | None, line: str) -> None:
    path = tmp_path / "image.sqfs"
    path.write_bytes(image.data + bytes(2 * BLOCK))  # the file may go on, the image doesn't
    server = Server(path)
    server.init()
    for _ in range(2):
        with pytest.raises(OSError) as refused:
            needs(server)
        assert refused.value.errno == errno.EIO
    if other:
        other(server)
    assert server.read(node(server, "kept/file")) == KEPT
    status, said = server.end()
    assert status == 0
    assert re.fullmatch(rf"{re.escape(str(path))} is damaged: [^\n]*{re.escape(line)}[^\n]*, at byte \d+\n", said), said


def test_a_block_that_the_end_cuts(plain: bytes, tmp_path: Path) -> None:
    image = Plain(plain)
    image.put(image.array(80, 0, 16, 0, 8), len(plain) - 3)
    check(image, tmp_path, read("small"), read("blocks"), "beyond the image's end")


def test_a_file_that_is_cut_off_while_it_is_served(plain: bytes, tmp_path: Path) -> None:
    path = tmp_path / "image.sqfs"
    path.write_bytes(plain)
    server = Server(path)
    server.init()
    nodes = [node(server, name) for name in ("small", "kept/file")]
    os.truncate(path, 100)
    for number in nodes:
        with pytest.raises(OSError) as refused:
            server.read(number)
        assert refused.value.errno == errno.EIO
    status, said = server.end()
    assert status == 0 and re.fullmatch(r"[^\n]* is damaged: the file has been cut off, at byte \d+\n", said), said


@pytest.mark.parametrize("kind", [0, 15])
def test_an_inode_of_no_type_that_nobody_looked_up(plain: bytes, tmp_path: Path, kind: int) -> None:
    """A file may be changed while it is served: a value that was right at the look-up may be wrong later."""
    image = Plain(plain)
    number = image.entries(image.inode(""))[b"small"][1] + 2
    image.put(image.of("small", (0, 2)), kind)
    check(image, tmp_path, lambda server: server.ask(GETATTR, number, bytes(16)), names("dir"), "an inode's type")


def test_a_mode_has_no_say_in_the_type(plain: bytes, tmp_path: Path) -> None:
    image = Plain(plain)
    image.put(image.of("small", (2, 2)), 0xFFFF)
    (tmp_path / "image.sqfs").write_bytes(image.data)
    server = Server(tmp_path / "image.sqfs")
    server.init()
    (mode,) = struct.unpack_from("=I", server.ask(GETATTR, node(server, "small"), bytes(16)), 16 + 60)
    assert mode == stat.S_IFREG | 0o7777
    assert server.end() == (0, "")


def test_an_index_beyond_the_listing(plain: bytes, tmp_path: Path) -> None:
    """A listing that is continued far after its end finds nothing, whatever the index has."""
    image = Plain(plain)
    many = image.inode("many")
    image.put(image.inodes.field(many + 40, 4), image.listing(many)[1] + 100)
    (tmp_path / "image.sqfs").write_bytes(image.data)
    server = Server(tmp_path / "image.sqfs")
    server.init()
    number = node(server, "many")
    assert server.ask(READDIR, number, struct.pack("=QQI20x", 0, EVERYTHING, 4096)) == b""
    assert len(server.names(number)) == 902
    status, said = server.end()
    assert status == 0 and re.fullmatch(r"[^\n]* is damaged: a directory's index, at byte \d+\n", said), said


def test_a_block_of_metadata_beyond_its_table(plain: bytes, tmp_path: Path) -> None:
    """The attributes' block is made two bytes longer: their index begins there."""
    image = Plain(plain)
    start = image.word(image.super(56, 8), 8)
    image.put([start, start + 1], image.word(start, 2) + 2)
    check(image, tmp_path, attributes("one"), read("small"), "attributes")


def test_empty_blocks_of_metadata(plain: bytes, tmp_path: Path) -> None:
    """A metadata block must not be empty: a long row of empty ones would take as long to read."""
    image = Plain(plain)
    at, size = image.listing(image.inode("dir"))
    listing = bytes(image.data[place] for place in image.directories.field(at, size))
    # Replace some names of `many` by an empty block, followed by one with the listing.
    place = image.directories.field(image.listing(image.inode("many"))[0] + 1000, 1)[0]
    image.data[place : place + 4 + size] = struct.pack("<HH", 0x8000, 0x8000 | size) + listing
    image.put(image.of("dir", (16, 4)), place - image.super(72, 8))
    image.put(image.of("dir", (26, 2)), 0)
    check(image, tmp_path, names("dir"), look_up("dir"), "metadata block")


def test_a_block_of_users_before_the_first(world_tmp: Path, tmp_path: Path) -> None:
    root = world_tmp / "damage-users"
    root.mkdir()
    for number in range(2060):
        (root / f"{number:04}").touch()
        os.chown(root / f"{number:04}", 5000 + number, 0)
    command = ["mksquashfs", root, tmp_path / "users.sqfs", "-noI", "-noD", "-all-time", "0", "-quiet", "-no-progress"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    subprocess.run(["rm", "-rf", root], check=True)
    data = bytearray((tmp_path / "users.sqfs").read_bytes())
    (index,) = struct.unpack_from("<Q", data, 48)
    struct.pack_into("<Q", data, index + 8, struct.unpack_from("<Q", data, 64)[0])
    (tmp_path / "users.sqfs").write_bytes(data)
    server = Server(tmp_path / "users.sqfs")
    server.init()
    assert server.lookup(b"0003")
    with pytest.raises(OSError) as refused:
        server.lookup(b"2059")
    assert refused.value.errno == errno.EIO
    assert re.fullmatch(r"[^\n]* is damaged: table of users, at byte \d+\n", server.end()[1])


def test_a_value_elsewhere(plain: bytes, tmp_path: Path) -> None:
    """Attributes that share a value have its place instead, with a size of 8; that place must not lead to another."""
    image = Plain(plain)
    shared = [m.start() for m in re.finditer(b"shared", plain)]
    elsewhere = [at for at in shared if image.word(at - 4, 2) & 0x100]
    assert len(shared) == 2 and elsewhere == shared
    needs, other = (attribute(name, b"trusted.shared") for name in ("one", "two"))
    for size in (7, 9):
        image = Plain(plain)
        image.put(list(range(elsewhere[0] + 6, elsewhere[0] + 10)), size)
        check(image, tmp_path, needs, other, "value")
    image = Plain(plain)
    image.put(list(range(elsewhere[0] + 10, elsewhere[0] + 18)), 1 << 40)
    check(image, tmp_path, needs, other, "attributes")


def test_more_names_than_a_file_can_have(world_tmp: Path, tmp_path: Path) -> None:
    """A count that includes other files' attributes: reading stops at the most that a file can have."""
    root = world_tmp / "damage-names"
    root.mkdir()
    for number in range(300):
        (root / f"{number:03}").touch()
        os.setxattr(root / f"{number:03}", f"trusted.{number:03}{'n' * 240}", b"")
    path = tmp_path / "names.sqfs"
    command = ["mksquashfs", root, path, "-noI", "-noX", "-all-time", "0", "-quiet", "-no-progress"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    subprocess.run(["rm", "-rf", root], check=True)
    data = bytearray(path.read_bytes())
    (header,) = struct.unpack_from("<Q", data, 56)
    (block,) = struct.unpack_from("<Q", data, header + 16)
    struct.pack_into("<I", data, block + 2 + 8, EVERYTHING)
    path.write_bytes(data)
    server = Server(path)
    server.init()
    with pytest.raises(OSError) as refused:
        server.listxattr(server.lookup(b"000"))
    assert refused.value.errno == errno.EIO
    assert re.fullmatch(r"[^\n]* is damaged: an attribute's name, at byte \d+\n", server.end()[1])
