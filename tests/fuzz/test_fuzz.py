# SPDX-License-Identifier: Apache-2.0
"""The C parsers against malformed input: the kept cases, and a few thousand mutations of them.

`make chaos` runs the same targets for a million cases, led by coverage.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.native.fuse_wire import Gone, Server

from . import squashfs_seeds

HERE = Path(__file__).parent
TARGETS = ["ch_join", "words", "meeting", "submit", "node", "relay"]
CASES = 4000
SEED = 20261124
# Numbers of images: for the reader alone, and through a whole server.
IMAGES = 40_000
SERVED = 2000 if os.environ.get("CHAOS") == "full" else 60


@pytest.fixture(scope="session")
def fuzzers(world_tmp: Path) -> Path:
    """The targets, built with sanitizers and the small driver."""
    out = world_tmp / "fuzz"
    subprocess.run(["make", "-s", "-j4", "-C", str(HERE), f"OUT={out}"], check=True, capture_output=True, text=True)
    return out


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.row("E4", "L5")
def test_kept_and_mutated_cases(fuzzers: Path, target: str) -> None:
    corpus = sorted((HERE / "corpus" / target).iterdir())
    crash = fuzzers / f"{target}.crash"
    done = subprocess.run(
        [fuzzers / f"small-{target}", str(CASES), str(SEED), *map(str, corpus)], check=False, capture_output=True, text=True,
        timeout=120, errors="replace", env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0", "CRASH_FILE": str(crash)},
    )  # fmt: skip
    assert done.returncode == 0, (done.stderr[-2000:], crash.exists() and crash.read_bytes())
    assert int(done.stdout) == CASES + len(corpus)


@pytest.fixture(scope="session")
def images(world_tmp: Path) -> Iterator[list[Path]]:
    """Images to be mutated: made now, and kept in the corpus."""
    made = squashfs_seeds.make(world_tmp / "fuzz-images")
    yield [*made, *sorted((HERE / "corpus/squashfs").iterdir())]


def test_images_that_lie(fuzzers: Path, images: list[Path]) -> None:
    """In the reader alone; `make fuzz` tries ten million, `make chaos` one million with further sanitizers."""
    command = [fuzzers / "small-squashfs", str(IMAGES), str(SEED), *images]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240, errors="replace")
    assert done.returncode == 0, done.stderr[-3000:]
    cases, opened, whole = map(int, done.stdout.split())
    assert cases == IMAGES + len(images)
    assert opened > IMAGES // 4
    assert whole >= len(squashfs_seeds.SEEDS)


def test_images_that_lie_through_a_whole_server(fuzzers: Path, images: list[Path], tmp_path: Path) -> None:
    command = [fuzzers / "small-squashfs", "write", str(tmp_path), "0", str(SERVED), str(SEED), *map(str, images)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    served = 0
    for number in range(SERVED):
        server = Server(tmp_path / str(number))
        try:
            server.init()
            server.explore(20)
            served += 1
        except Gone:
            pass
        status, said = server.end()
        assert status in (0, 1) and said.count("\n") <= 2, (number, status, said)
    assert served > SERVED // 4
