# SPDX-License-Identifier: Apache-2.0
"""The SquashFS server's block cache: threads that stop at critical places, under the thread sanitizer."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from .made import SPANK

# The cache has no room for the first one.
NAMES = ("whole", "holes", "empty", *(f"small{number}" for number in range(9)))


@pytest.fixture(scope="module")
def program(world_tmp: Path) -> Path:
    to = world_tmp / "blocks"
    server = SPANK / "ch-squashfuse_ll"
    sources = ("bytes", "decompress", "directory", "image", "inode", "lzo", "metadata", "xattr")
    # The metadata cache has only as many blocks as all threads together may hold.
    small = ["-DMETADATA_SETS=1", "-DMETADATA_WAYS=1"]
    flags = [
        "-std=gnu11",
        "-g",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fsanitize=thread",
        "-DHAVE_LIBDEFLATE",
        "-DHAVE_ZSTD",
    ]
    libraries = ["-ldeflate", "-lzstd", "-pthread"]
    command = [
        "cc", *flags, *small, f"-I{server}", "-o", to, Path(__file__).with_name("blocks.c"),
        *(server / f"{name}.c" for name in sources), *libraries,
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, text=True)
    return to


@pytest.fixture(scope="module")
def tree(world_tmp: Path) -> Path:
    """Files with blocks that shrink and that don't, holes, tails in one fragment; no two blocks alike."""
    root = world_tmp / "blocks-tree"
    root.mkdir()
    dice = random.Random(7)

    def piece(size: int) -> bytes:
        return dice.randbytes(size // 4) + dice.randbytes(16) * (size // 4 * 3 // 16)

    (root / "whole").write_bytes(b"".join(piece(4096) if n % 5 else dice.randbytes(4096) for n in range(2900)) + b"end")
    with open(root / "holes", "wb") as file:
        for _ in range(3):
            file.seek(1 << 20, 1)
            file.write(piece(70_000))
        file.truncate(4 << 20)
    (root / "empty").touch()
    for number in range(9):
        (root / f"small{number}").write_bytes(piece(400 * number + 64))
    return root


@pytest.mark.parametrize(
    ("size", "options"),
    [
        pytest.param(4 << 10, ["-comp", "gzip", "-always-use-fragments"], id="4K-gzip"),
        pytest.param(128 << 10, ["-comp", "zstd"], id="128K-zstd"),
        pytest.param(1 << 20, ["-comp", "gzip"], id="1M-gzip"),
    ],
)
def test_threads_share_blocks(program: Path, tree: Path, world_tmp: Path, size: int, options: list[str]) -> None:
    image = world_tmp / f"blocks-{size}.sqfs"
    command = ["mksquashfs", str(tree), str(image), "-b", str(size), *options, "-Xcompression-level", "1", "-quiet"]
    subprocess.run([*command, "-no-progress", "-noappend"], check=True, capture_output=True, text=True)
    # The sanitizer fails with the highly random addresses of some kernels.
    command = ["setarch", "--addr-no-randomize", str(program), str(image), str(tree), *NAMES]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.stderr, done.returncode) == ("done\n", "", 0)
