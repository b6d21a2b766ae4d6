# SPDX-License-Identifier: Apache-2.0
"""Decompression: our LZO decoder stays within its memory for any stream; the libraries' checksums are checked."""

from __future__ import annotations

import errno
import random
import subprocess
from pathlib import Path

import pytest

from .conftest import SPANK
from .fuse_wire import Server


def first_block(data: bytes) -> int:
    """Return where an image's first data block is: after the superblock and, if it has any, its compressor's options."""
    options = int.from_bytes(data[24:26], "little") & 0x400
    return 96 + (2 + (int.from_bytes(data[96:98], "little") & 0x7FFF) if options else 0)


def streams(world_tmp: Path, to: Path) -> list[Path]:
    """Compress short files, each in its own block: repeated text, long runs, and repetitions that are far apart."""
    dice = random.Random(6)
    words = [dice.randbytes(dice.randint(2, 9)) for _ in range(12)]
    noise = dice.randbytes(180)
    contents = [
        b"".join(dice.choices(words, k=60)),
        noise[:20] + bytes(2000) + noise[:40] + b"ab" * 700 + noise[30:80],
        noise + bytes(600) + noise[::-1] + noise + b"x" * 300,
    ]
    root = world_tmp / "lzo"
    root.mkdir()
    for number, content in enumerate(contents):
        (root / str(number)).write_bytes(content)
    image = to / "lzo.sqfs"
    command = ["mksquashfs", root, image, "-comp", "lzo", "-noI", "-no-fragments", "-b", "4K", "-quiet", "-no-progress"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    subprocess.run(["rm", "-rf", root], check=True)
    data, made = image.read_bytes(), []
    at = first_block(data)
    inodes = int.from_bytes(data[64:72], "little")
    for number, content in enumerate(contents):
        # A file's inode ends with its block's size.
        size_field = data.index(len(content).to_bytes(4, "little"), inodes)
        size = int.from_bytes(data[size_field + 4 : size_field + 8], "little")
        assert 0 < size < len(content), "not compressed"
        made.append(to / f"stream{number}")
        made[-1].write_bytes(data[at : at + size])
        at += size
    return made


def test_streams_that_lie(world_tmp: Path, tmp_path: Path) -> None:
    program = tmp_path / "lzo"
    server = SPANK / "ch-squashfuse_ll"
    flags = ["-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined"]
    sources = [Path(__file__).with_name("lzo.c"), server / "lzo.c"]
    command = ["cc", *flags, "-fno-sanitize-recover=all", f"-I{server}", "-o", program, *sources]
    subprocess.run(command, check=True, capture_output=True, text=True)
    command = [program, *streams(world_tmp, tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr[-2000:], done.returncode) == ("done\n", "", 0)


@pytest.mark.parametrize("compression", ["gzip", "xz"])
def test_a_checksum(tmp_path: Path, compression: str) -> None:
    """A block that can be inflated completely, but to other contents than were packed, is refused."""
    (tmp_path / "tree").mkdir()
    text = b"".join(b"%d" % number for number in range(1000))
    (tmp_path / "tree/file").write_bytes(text)
    image = tmp_path / "image.sqfs"
    command = ["mksquashfs", tmp_path / "tree", image, "-comp", compression, "-no-fragments", "-noI", "-b", "4K"]
    subprocess.run([*command, "-quiet", "-no-progress"], check=True, capture_output=True, timeout=60)
    data = bytearray(image.read_bytes())
    size_field = data.index(len(text).to_bytes(4, "little"), int.from_bytes(data[64:72], "little"))
    end = first_block(data) + int.from_bytes(data[size_field + 4 : size_field + 8], "little")
    for changed in (0, 1):
        data[end - 1] ^= changed
        image.write_bytes(data)
        server = Server(image)
        server.init()
        node = server.lookup(b"file")
        if changed:
            with pytest.raises(OSError) as refused:
                server.read(node)
            assert refused.value.errno == errno.EIO
        else:
            assert server.read(node) == text
        status, said = server.end()
        assert status == 0 and ("compressed data block" in said) == bool(changed)
