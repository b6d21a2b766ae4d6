# SPDX-License-Identifier: Apache-2.0
"""One at a time installs from the checkout: that makes what it installs there."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def turn() -> Iterator[None]:
    with (ROOT / "Makefile").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
