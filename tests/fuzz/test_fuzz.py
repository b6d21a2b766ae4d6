# SPDX-License-Identifier: Apache-2.0
"""The C parsers against what nobody sends: the kept cases, and a few thousand made of them.

`make chaos` runs the same targets for a million cases, led by coverage.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TARGETS = ["ch_join", "submit", "node", "relay"]
CASES = 4000
SEED = 20261124


@pytest.fixture(scope="session")
def fuzzers(world_tmp: Path) -> Path:
    """The targets, built with sanitizers and the small driver."""
    out = world_tmp / "fuzz"
    subprocess.run(["make", "-s", "-j4", "-C", str(HERE), f"OUT={out}"], check=True, capture_output=True, text=True)
    return out


@pytest.mark.parametrize("target", TARGETS)
def test_kept_and_mutated_cases(fuzzers: Path, target: str) -> None:
    corpus = sorted((HERE / "corpus" / target).iterdir())
    crash = fuzzers / f"{target}.crash"
    done = subprocess.run(
        [fuzzers / f"small-{target}", str(CASES), str(SEED), *map(str, corpus)], check=False, capture_output=True, text=True,
        timeout=120, errors="replace", env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0", "CRASH_FILE": str(crash)},
    )  # fmt: skip
    assert done.returncode == 0, (done.stderr[-2000:], crash.exists() and crash.read_bytes())
    assert int(done.stdout) == CASES + len(corpus)
