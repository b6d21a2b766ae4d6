# SPDX-License-Identifier: Apache-2.0
"""Apptainer's files run as they are: from the SquashFS that is in them."""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from slurm_ch.engine import sif
from slurm_ch.errors import ChError
from tests.command import SLURM_CH
from tests.small_images import make_image, squash

from .conftest import settings

Good = Callable[..., str]
Fails = Callable[..., str]
Run = Callable[..., "subprocess.CompletedProcess[str]"]

PARTITION, DEFINITION, OCI_INDEX = 0x4004, 0x4001, 0x400A
SQUASHFS, EXT3, ENCRYPTED = 1, 2, 5
SYSTEM, PRIMARY, OVERLAY = 1, 2, 4


def descriptor(kind: int, at: int, size: int, extra: bytes = b"", used: bool = True) -> bytes:
    whole = struct.pack("<i?IIIqqqqqqq128s384s", kind, used, 1, 0, 0, at, size, size, 0, 0, 0, 0, b"name", extra)
    assert len(whole) == 585
    return whole


def make(data: bytes, parts: list[tuple[int, bytes]], at: int = 36864) -> bytes:
    """Return a file with `data` at a place as Apptainer chooses it, and a descriptor for each (type, extra)."""
    table = b"".join(descriptor(kind, at, len(data), extra) for kind, extra in parts)
    table += descriptor(PARTITION, 7, 7, struct.pack("<ii", EXT3, PRIMARY), used=False)
    header = struct.pack(
        "<32s10s3s3s16sqqqqqqqq",
        b"#!/usr/bin/env run-singularity\n", b"SIF_MAGIC\0", b"01\0", b"02\0", b"i" * 16, 0, 0,
        0, len(parts) + 1, 4096, len(table), at, len(data),
    )  # fmt: skip
    assert len(header) == 128
    return (header.ljust(4096, b"\0") + table).ljust(at, b"\0") + data


def partition(system: int, purpose: int) -> tuple[int, bytes]:
    return PARTITION, struct.pack("<ii3s", system, purpose, b"02")


def test_it_runs_with_its_environment_and_its_script(good: Good, world_tmp: Path) -> None:
    root = make_image(world_tmp / "sif-root", "in a sif")
    own = root / ".singularity.d"
    (own / "env").mkdir(parents=True)
    (own / "env/90-environment.sh").write_text("#!/bin/sh\nexport GREETING='hello there'\n")
    (own / "runscript").write_text('#!/bin/sh\necho "$GREETING" from "$@"\n')
    (own / "runscript").chmod(0o755)
    data = squash(root, world_tmp / "sif.sqfs").read_bytes()
    image = world_tmp / "app.sif"
    image.write_bytes(make(data, [(DEFINITION, b""), partition(SQUASHFS, PRIMARY), partition(EXT3, OVERLAY)]))
    assert good(image, "--", "cat", "/marker") == "in a sif\n"
    assert good(image, "--", "-", "me") == "hello there from me\n"
    assert good("-W", image, "--", "sh", "-c", "echo x > /new; cat /new") == "x\n"


def test_one_that_apptainer_made(good: Good, fails: Fails, run: Run, user: str, apptainers: Path) -> None:
    """No shell is in it: nothing of its environment and runscript needs one."""
    before = apptainers.read_bytes()
    assert good(apptainers, "--", "-") == "hello from apptainer\n"
    assert good(apptainers, "--", "-", "to", "you") == "hello from apptainer to you\n"
    assert good("--set-env=GREETING=ours", apptainers, "--", "-") == "ours\n"
    assert good("--image-env=no", apptainers, "--", "-") == "nothing\n"
    labels = json.loads(good(apptainers, "--", "/bin/greet", "=", "/.singularity.d/labels.json"))
    assert labels["org.example.title"] == "greet" and "org.label-schema.usage.apptainer.version" in labels
    assert good("-W", apptainers, "--", "/bin/greet", "+", "/made") == "/made"
    assert run(apptainers, "--", "/bin/greet", "+", "/made").returncode == 1
    assert "can't execute sh: No such file or directory" in fails(127, apptainers, "--", "sh")
    assert apptainers.read_bytes() == before
    command = [SLURM_CH, "explain", str(apptainers), "--", "-"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, **settings(user))  # type: ignore[call-overload]
    assert f"\nmount SquashFS {apptainers} with " in done.stdout
    assert "\nenvironment: the image's own if it brings one, " in done.stdout


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([partition(EXT3, PRIMARY)], "whose file system is ext3, which only root can mount"),
        ([partition(ENCRYPTED, PRIMARY)], "which is encrypted"),
        ([(OCI_INDEX, b"")], "that keeps its layers apart (OCI-SIF)"),
        ([partition(SQUASHFS, OVERLAY)], "without a root file system"),
        ([], "without a root file system"),
        ([partition(99, SYSTEM)], "without a SquashFS in it"),
    ],
)
def test_what_cannot_be_run_is_refused_in_words(
    fails: Fails, world_tmp: Path, parts: list[tuple[int, bytes]], words: str
) -> None:
    image = world_tmp / "bad.sif"
    image.write_bytes(make(b"hsqs", parts))
    assert fails(31, image, "--", "true") == (
        f"unknown image type: {image}: an image of Apptainer's (SIF) {words}: "
        f"`apptainer build --sandbox DIR {image}`, then name the directory"
    )


def test_a_file_of_singularity_2(good: Good, world_tmp: Path, image_sqfs: Path) -> None:
    image = world_tmp / "old.img"
    image.write_bytes(b"#!/usr/bin/env run-singularity\n" + image_sqfs.read_bytes())
    assert good(image, "--", "cat", "/marker") == "one\n"


def test_damaged_headers(tmp_path: Path) -> None:
    whole = make(b"hsqs", [partition(SQUASHFS, PRIMARY)])
    path = tmp_path / "x.sif"
    for at, value in ((88, b"\xff" * 8), (88, b"\0\0\1" + b"\0" * 5), (96, b"\0" * 8), (96, b"\xff" * 8)):
        path.write_bytes(whole[:at] + value + whole[at + 8 :])
        with path.open("rb") as file, pytest.raises(ChError):
            sif.offset(file.fileno(), "x.sif")
    path.write_bytes(whole[:60])
    with path.open("rb") as file, pytest.raises(ChError, match="damaged"):
        sif.offset(file.fileno(), "x.sif")
    path.write_bytes(whole[:36864])
    with path.open("rb") as file, pytest.raises(ChError, match="without a SquashFS"):
        sif.offset(file.fileno(), "x.sif")
