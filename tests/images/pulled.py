# SPDX-License-Identifier: Apache-2.0
"""Helpers of the tests that pull images."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from slurm_ch.errors import ChError
from slurm_ch.images import pull, reference, resolve

Make = Callable[..., pull.Puller]
parse = reference.parse


def read(sqfs: str | Path, path: str) -> bytes:
    return subprocess.run(["rdsquashfs", "-c", path, sqfs], check=True, capture_output=True).stdout


def names(sqfs: str | Path) -> set[str]:
    text = subprocess.run(["unsquashfs", "-ls", "-d", "", sqfs], check=True, capture_output=True, text=True).stdout
    # An older one has a heading too.
    return {line for line in text.splitlines() if line[:1] in ("", "/")}


def nothing_left(puller: pull.Puller) -> None:
    for name in ("tmp", "lock"):
        place = Path(puller.store.directory, name)
        assert not place.exists() or list(place.iterdir()) == []


def refused(puller: pull.Puller, text: str, words: str, mode: str = resolve.AUTO) -> str:
    with pytest.raises(ChError, match=words) as caught:
        puller.get(parse(text), mode)
    nothing_left(puller)
    assert [one.path for one in puller.store.images() if not one.site] == []
    return str(caught.value)


def fake_packer(directory: Path, name: str, script: str) -> str:
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)
