# SPDX-License-Identifier: Apache-2.0
"""A user who may write to an image changes it between two looks of ours: nothing of the host is shown or changed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from slurm_ch.engine import image_environment, places, root
from slurm_ch.engine.action import Build
from slurm_ch.errors import ChError
from slurm_ch.images import directory, merge
from slurm_ch.images.flat import Flat
from tests.small_images import make_image, squash

from .conftest import settings

# Covers a directory of a read-only image, one entry of which becomes a link to the host after its kind was looked at.
COVERED = """
import os, sys
from slurm_ch import linux
from slurm_ch.engine import places
from slurm_ch.engine.action import Build
from slurm_ch.errors import ChError
from slurm_ch.images import directory, merge
image, secret, writer = sys.argv[1:]
build = Build()
build.root_fd = linux.open_tree(-100, image, linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC)
linux.move_mount(build.root_fd, "", -100, image, linux.MOVE_MOUNT_F_EMPTY_PATH)
build.mounts.add(places.mount_id(build.root_fd))
linux.mount_setattr(build.root_fd, 0, linux.MOUNT_ATTR_RDONLY)
build.read_only = True
made = os.mkdir
def swapped(name, mode=0o777, dir_fd=None):
    made(name, mode, dir_fd=dir_fd)
    if name == "data":
        os.rename(f"{writer}/data", f"{writer}/away")
        os.symlink(secret, f"{writer}/data")
os.mkdir = swapped
os.close(places.create(build, "/new", True))
print(sorted(os.listdir(f"/proc/self/fd/{build.root_fd}/data")))
"""


def test_an_entry_that_becomes_a_link_while_its_directory_is_covered(tmp_path: Path) -> None:
    image, writer, secret = tmp_path / "image", tmp_path / "writer", tmp_path / "secret"
    (image / "data").mkdir(parents=True)
    (image / "data/of-the-image").touch()
    writer.mkdir()
    secret.mkdir()
    (secret / "of-the-host").touch()
    # `writer` is the same directory by another way, which is not read-only.
    script = 'mount --bind "$2" "$4" && exec "$0" -c "$1" "$2" "$3" "$4"'
    words = ["sh", "-c", script, sys.executable, COVERED, str(image), str(secret), str(writer)]
    done = subprocess.run(
        ["unshare", "-m", *words],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.getcwd()},
    )
    assert (done.stdout, done.returncode) == ("['of-the-image']\n", 0), done


def _in_memory(directory: Path) -> Build:
    build = Build()
    build.root_fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    build.mounts.add(places.mount_id(build.root_fd))
    build.in_memory = True
    return build


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that are written over files of the image."""
    found: list[str] = []
    monkeypatch.setattr(root.WriteFile, "apply", lambda self, _build: found.append(self.text))
    return found


def test_a_passwd_that_becomes_a_link_to_what_is_bound(tmp_path: Path, written: list[str]) -> None:
    """It is opened twice, to be read and to be written: what is bound from the host is changed by neither."""
    image = tmp_path / "image"
    (image / "etc").mkdir(parents=True)
    (image / "home").mkdir()
    passwd = image / "etc/passwd"
    passwd.write_text("root:x:0:0:root:/root:/bin/sh\n")
    subprocess.run(["mount", "-t", "tmpfs", "none", image / "home"], check=True)
    bound = image / "home/profile"
    bound.write_text("the user's\n")

    def swap(line: str) -> str:
        passwd.unlink()
        passwd.symlink_to("/home/profile")
        return line

    build = _in_memory(image)
    try:
        root.AddAccount("/etc/passwd", lambda _build: "u:x:7:7::/:/bin/sh", swap).apply(build)
        assert bound.read_text() == "the user's\n"
    finally:
        os.close(build.root_fd)
        subprocess.run(["umount", image / "home"], check=True)
    assert written == ["u:x:7:7::/:/bin/sh\nroot:x:0:0:root:/root:/bin/sh\n"]


def test_a_passwd_that_is_a_fifo_which_somebody_writes_to(tmp_path: Path, written: list[str]) -> None:
    (tmp_path / "etc").mkdir()
    fifo = tmp_path / "etc/passwd"
    os.mkfifo(fifo)
    writer = os.open(fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    build = _in_memory(tmp_path)
    try:
        root.AddAccount("/etc/passwd", lambda _build: "u:x:7:7::/:/bin/sh", lambda line: line + "\n").apply(build)
    finally:
        os.close(writer)
        os.close(build.root_fd)
    assert written == ["u:x:7:7::/:/bin/sh\n"]


@pytest.mark.parametrize(
    "text",
    [
        "export A=aaaaaaaaaaaaaaaa\n" + "export A=$A$A\n" * 100,
        "export A=" + "a" * 100_000 + "\nexport B=" + "$A" * 400_000,
        "export A=" + "a" * 100_000 + "\n" + "".join(f"export B{n}=$A.\n" for n in range(50_000)),
        "unset "
        + " ".join(f"A{n}" for n in range(60_000))
        + "\n"
        + "".join(f"export B=$C{n}\n" for n in range(40_000)),
        "export A=" + "${A:-" * 200_000,
        "\n" * (4 << 20),
    ],
    ids=["doubles", "long", "many", "unset", "deep", "lines"],
)
def test_a_script_that_would_fill_the_memory(text: str) -> None:
    """An image's script costs no more than its length."""
    script = image_environment.Script()
    reader = threading.Thread(target=script.read, args=(text,), daemon=True)
    reader.start()
    reader.join(60)
    assert not reader.is_alive()
    assert sum(map(len, script.values.values())) <= 4 << 20


@pytest.mark.parametrize("when", ["listed", "copied"])
def test_a_directory_that_becomes_a_link_while_it_is_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Nothing of where the link leads gets into the archive."""
    image, secret = tmp_path / "image", tmp_path / "secret"
    for place, text in ((image / "data", "of the image"), (secret, "of the host!")):
        place.mkdir(parents=True)
        (place / "file").write_text(text)
    node = directory._make_node

    def swap() -> None:
        (image / "data").rename(tmp_path / "away")
        (image / "data").symlink_to(secret)

    def seen(path: str, status: os.stat_result) -> merge.Node:
        found = node(path, status)
        if path.endswith("/data") and when == "listed":
            swap()
        return found

    monkeypatch.setattr(directory, "_make_node", seen)
    out = os.open(tmp_path / "archive", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with pytest.raises(ChError, match="can't (pack|read)"):
            flat = Flat(directory.read(str(image)))
            swap()
            flat.write(out)
    finally:
        os.close(out)
    assert b"of the host!" not in (tmp_path / "archive").read_bytes()


# Another image takes the place of the one that was looked at.
REPLACED = """
import os, sys
import slurm_ch
from slurm_ch.engine import image
path, other = sys.argv[1:]
resolve = image.resolve
def replaced(*words):
    found = resolve(*words)
    os.rename(path, path + ".checked")
    os.rename(other, path)
    return found
image.resolve = replaced
try:
    sys.exit(slurm_ch.run(path, ["cat", "/marker"]))
except slurm_ch.ChError as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize(
    ("kind", "shown"), [("file", "first\n"), ("directory", "{}: another directory has taken its place\n")]
)
def test_an_image_that_is_replaced_after_it_was_checked(user: str, world_tmp: Path, kind: str, shown: str) -> None:
    """The file that was checked is shown; a replaced directory is refused."""
    place = world_tmp / f"replaced-{kind}"
    place.mkdir()
    images = [make_image(place / name, name, ("cat",)) for name in ("first", "second")]
    if kind == "file":
        images = [squash(tree, tree.with_suffix(".sqfs")) for tree in images]
    subprocess.run(["chown", "-R", user, place], check=True)
    done = subprocess.run(
        [sys.executable, "-c", REPLACED, *images], capture_output=True, text=True, timeout=30, check=False,
        **{**settings(user), "cwd": "/", "env": {"PATH": "/usr/bin:/bin", "PYTHONPATH": os.getcwd()}},
    )  # type: ignore[call-overload]  # fmt: skip
    assert (done.stdout or done.stderr).endswith(shown.format(images[0])), done
    assert (done.returncode == 0) == (kind == "file")
