# SPDX-License-Identifier: Apache-2.0
"""Files that are no images: the message says what the file is, and how to make an image from it."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

Good = Callable[..., str]
Fails = Callable[..., str]


def tar(*names: str) -> bytes:
    """Return an archive of files with these names."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 700
            archive.addfile(member, io.BytesIO(b"x" * 700))
    return data.getvalue()


FILES = {
    "f.tar": (tar("bin/sh", "etc/passwd"), "an archive: `mkdir DIR; tar -xf {} -C DIR`, then name the directory"),
    "oci.tar": (tar("blobs/sha256/x", "oci-layout"), "an archive of an image's layers: `slurm-ch pull oci-archive:{} FILE.sqfs`, then name the file"),
    "save.tar": (tar("x/layer.tar", "./manifest.json"), "an archive of an image's layers: `slurm-ch pull docker-archive:{} FILE.sqfs`, then name the file"),
    "f.tgz": (gzip.compress(tar("x")), "compressed by gzip. An archive of a root directory: `mkdir DIR; tar -xf {} -C DIR`, then name the directory. "
              "Of `docker save`: `slurm-ch pull docker-archive:{} FILE.sqfs`, then name the file"),
    "f.txz": (lzma.compress(tar("x")), "compressed by xz. "),
    "f.tbz": (bz2.compress(tar("x")), "compressed by bzip2. "),
    "f.zip": (b"PK\3\4" + bytes(100), "a zip archive: "),
    "app": (b"\x7fELF" + bytes(100), "a program"),
    "Dockerfile": (b"FROM debian:12\n", "a recipe for an image, not built yet"),
    "x.def": (b"Bootstrap: docker\n", "a recipe for an image, not built yet"),
    "disk.img": (bytes(1080) + b"\x53\xef" + bytes(3000), "an ext2, ext3 or ext4 file system"),
    "big-endian": (b"sqsh" + bytes(100), "SquashFS of the other byte order"),
    "cut.tar": (tar("bin/sh")[:300], "an archive: "),
    "bad.tar": (tar("a")[:124] + b"9" * 12 + tar("a")[136:512], "an archive: "),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.row("I2")
def test_files(fails: Fails, world_tmp: Path, name: str) -> None:
    content, what = FILES[name]
    path = world_tmp / f"no-image-{name}"
    path.write_bytes(content)
    line = fails(31, path, "--", "true")
    assert line.startswith(f"unknown image type: {path}: {what.replace('{}', str(path))}")


DIRECTORIES = {
    "empty": ((), "an empty directory"),
    "layout": (("oci-layout", "index.json", "blobs/sha256/x"), "an OCI layout: `slurm-ch pull oci:{} FILE.sqfs`, then name the file"),
    "bundle": (("config.json", "rootfs/bin/sh"), "an OCI bundle: the image is {}/rootfs"),
    "copied": (("manifest.json", "version", "0123"), "an image's layers: `slurm-ch pull dir:{} FILE.sqfs`, then name the file"),
    "storage": (("version", "img/x", "dlcache/x"), "ch-image's storage: name an image in it, with --ch-storage={}"),
}  # fmt: skip


@pytest.mark.parametrize("name", DIRECTORIES)
def test_directories(fails: Fails, world_tmp: Path, name: str) -> None:
    files, what = DIRECTORIES[name]
    path = world_tmp / f"no-image-{name}"
    path.mkdir()
    for file in files:
        (path / file).parent.mkdir(parents=True, exist_ok=True)
        (path / file).write_text("")
    assert fails(31, path, "--", "true") == f"not an image: {path}: {what.replace('{}', str(path))}"


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("library://x/y:1", "library://x/y:1 is Apptainer's: `apptainer build --sandbox DIR library://x/y:1`, then name the directory"),
        ("oras://x/y", "oras://x/y is Apptainer's: "),
        ("https://x/y.sqfs", "https://x/y.sqfs: an image is a file or a directory here: download it, then name the file"),
        ("dockerd://ubuntu:1", "dockerd://ubuntu:1: dockerd:// is not known here (of a registry: docker://NAME). Perhaps docker-daemon:ubuntu:1"),
        ("podman://x/y", "podman://x/y: podman:// is not known here (of a registry: docker://NAME). Perhaps docker://x/y"),
        ("Docker://x", "Docker://x: Docker:// is not known here (of a registry: docker://NAME). Perhaps docker://x"),
        ("~/foo.sqfs", "can't stat image: ~/foo.sqfs (~ is not expanded in quotes: write the whole path): No such file or directory"),
        ("$HOME/foo.sqfs", "can't stat image: $HOME/foo.sqfs ($HOME is not expanded in quotes: write the whole path): No such"),
        ("/no/such/dir/foo.sqfs", "can't stat image: /no/such/dir/foo.sqfs (there is no /no on this node): No such file or directory"),
        ("/etc/foo.sqfs", "can't stat image: /etc/foo.sqfs: No such file or directory"),
        ("/etc/passwd/foo.sqfs", "can't stat image: /etc/passwd/foo.sqfs: Not a directory"),
        ("foo.sqfs", "can't stat image: foo.sqfs (looked for /usr/foo.sqfs): No such file or directory"),
        ("./foo", "can't stat image: ./foo (looked for /usr/foo): No such file or directory"),
        ("debian:12", "can't stat image: debian:12 (looked for /usr/debian:12) (from a registry: docker://debian:12): No such file or directory"),
        ("nvcr.io#nvidia/cuda:12", "can't stat image: nvcr.io#nvidia/cuda:12 (looked for /usr/nvcr.io#nvidia/cuda:12) (from a registry: docker://nvcr.io/nvidia/cuda:12): No such file or directory"),
    ],
)  # fmt: skip
@pytest.mark.row("I2")
def test_references(fails: Fails, reference: str, why: str) -> None:
    # Another test may have given the user a storage of their own.
    line = fails(31, reference, "--", "true", cwd="/usr").replace(", and in /var/tmp/chuser.ch", "")
    assert line.startswith(why)


def test_where_it_was_looked_up(fails: Fails, world_tmp: Path) -> None:
    (world_tmp / "looked/img").mkdir(parents=True)
    line = fails(31, "-s", world_tmp / "looked", "foo.sqfs", "--", "true")
    assert (
        line
        == f"can't stat image: foo.sqfs (looked for /foo.sqfs, and in {world_tmp}/looked): No such file or directory"
    )
