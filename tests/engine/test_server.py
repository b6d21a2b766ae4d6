# SPDX-License-Identifier: Apache-2.0
"""Our SquashFS server: an image has the contents that went into it."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from slurm_ch import paths
from slurm_ch.engine import squashfs
from tests.small_images import make_image

SERVER = Path(paths.NATIVE) / "ch-squashfuse_ll"
Good = Callable[..., str]

# Prints what a reader sees of a tree: kind, mode, links, size, time, and contents by four ways of reading.
LOOK = r"""
cd /t || exit 1
find . | sort | xargs stat -c '%F %a %h %Y %n' | md5sum
find . -type f -o -type l | sort | xargs stat -c '%s %n' | md5sum
find . -type f | sort | xargs md5sum | md5sum
find . -type l | sort | xargs -n1 readlink | md5sum
dd if=big bs=3333 2>/dev/null | md5sum
for at in 0 1 131071 131072 131073 400000 1000000 1000003; do dd if=big bs=1 skip=$at count=9 2>/dev/null; done | md5sum
ls many | md5sum
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory image with what file systems have: tails, holes, links, long names, thousands of entries."""
    root = make_image(tmp_path_factory.mktemp("server") / "root", "server")
    here = root / "t"
    for directory in (here, root / "lib64"):
        directory.mkdir()
    dice = random.Random(5)
    (here / "big").write_bytes(dice.randbytes(500_000) + b"x" * 500_003)
    with open(here / "holes", "wb") as file:
        for _ in range(3):
            file.seek(700_001, os.SEEK_CUR)
            file.write(dice.randbytes(1000))
    (here / "empty").touch()
    os.setxattr(here / "empty", b"user.colour", b"blue")
    (here / "block").write_bytes(bytes(131072))
    (here / "many").mkdir()
    for number in range(1500):
        (here / "many" / f"f{number:05}{'n' * (number % 200)}").write_bytes(dice.randbytes(number % 97))
    deep = here
    for _ in range(40):
        deep = deep / ("d" * 50)
        deep.mkdir()
    (deep / "bottom").write_text("here")
    os.link(here / "big", here / "hard")
    (here / "soft").symlink_to("/".join(["l" * 199] * 20))
    (here / "dangling").symlink_to("/nowhere")
    os.mkfifo(here / "fifo")
    (here / "secret").touch(mode=0o640)
    for path in here.rglob("*"):
        os.utime(path, (1, 86400), follow_symlinks=False)
    return root


PACKING = [
    [],
    ["-comp", "zstd", "-b", "1M"],
    ["-comp", "xz", "-b", "4096"],
    ["-comp", "lz4", "-no-fragments"],
    ["-noI", "-noD", "-noF"],
]


@pytest.mark.parametrize("packing", PACKING, ids=lambda words: " ".join(words) or "default")
def test_the_image_is_what_went_in(tree: Path, packing: list[str], world_tmp: Path, good: Good) -> None:
    assert str(SERVER) == squashfs.SERVER
    image = world_tmp / f"server-{len(''.join(packing))}.sqfs"
    subprocess.run(["mksquashfs", tree, image, "-quiet", "-no-progress", *packing], check=True, capture_output=True)
    image.chmod(0o644)
    try:
        tree.parent.chmod(0o755)
        seen = good(image, "--", "sh", "-c", LOOK).splitlines()
        wanted = subprocess.run(
            ["unshare", "-mR", tree, "sh", "-c", LOOK], check=True, capture_output=True, text=True, env={"PATH": "/bin"}
        ).stdout.splitlines()
        assert seen == wanted
    finally:
        image.unlink()


@pytest.mark.parametrize("words", [[], ["--fuse-single"]], ids=["threads", "one"])
def test_many_readers_at_once_see_the_same(tree: Path, words: list[str], world_tmp: Path, good: Good) -> None:
    image = world_tmp / "server-readers.sqfs"
    subprocess.run(["mksquashfs", tree, image, "-quiet", "-b", "4096"], check=True, capture_output=True)
    image.chmod(0o644)
    reader = "cat /t/big /t/many/* /t/holes | md5sum"
    line = f"for i in 1 2 3 4 5 6 7 8; do {{ {reader}; }} & done; wait"
    try:
        seen = good(*words, image, "--", "sh", "-c", line).splitlines()
    finally:
        image.unlink()
    wanted = subprocess.run(
        ["unshare", "-mR", tree, "sh", "-c", reader], check=True, capture_output=True, text=True, env={"PATH": "/bin"}
    ).stdout.strip()
    assert seen == [wanted] * 8


def test_extended_attributes_come_along(tree: Path, world_tmp: Path, good: Good) -> None:
    image = world_tmp / "server-xattr.sqfs"
    subprocess.run(["mksquashfs", tree, image, "-quiet"], check=True, capture_output=True)
    image.chmod(0o644)
    look = "import os; f = '/t/empty'; print(os.listxattr(f), os.getxattr(f, 'user.colour'), os.listxattr('/t/big'))"
    binds = [word for name in ("/usr", "/lib", "/lib64") for word in ("-b", name)]
    try:
        seen = good(*binds, image, "--", "/usr/bin/python3", "-I", "-S", "-c", look)
    finally:
        image.unlink()
    assert seen == "['user.colour'] b'blue' []\n"
