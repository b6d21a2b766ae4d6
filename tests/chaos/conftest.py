# SPDX-License-Identifier: Apache-2.0
"""The fault campaign's size, its lab, and the record of what happened.

`CHAOS=full` is the whole campaign (`make chaos`), else a short form of it runs.
`CHAOS_RESULTS=FILE` keeps the figures that docs/internals/reliability.rst shows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .harness import Lab, build_tools

FULL = os.environ.get("CHAOS") == "full"

Record = Callable[..., None]


@pytest.fixture(scope="session")
def tools(world_tmp: Path) -> Path:
    """The programs that labs are made of."""
    return build_tools(world_tmp / "chaos")


@pytest.fixture
def lab(tools: Path, image_sqfs: Path) -> Lab:
    """Steps without Slurm, by the ordinary user."""
    return Lab(tools, image_sqfs)


@pytest.fixture(scope="session")
def results() -> Iterator[dict[str, dict[str, object]]]:
    """The figures of this run, by fault; they are added to the file of results at the end."""
    rows: dict[str, dict[str, object]] = {}
    yield rows
    name = os.environ.get("CHAOS_RESULTS")
    if name and rows:
        file = Path(name)
        before = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**before, **rows}, indent=1, sort_keys=True) + "\n")


@pytest.fixture
def record(results: dict[str, dict[str, object]]) -> Record:
    """Record one fault: its name, and figures."""

    def keep(fault: str, **figures: object) -> None:
        print(f"{fault}: {figures}", flush=True)
        results[fault] = figures

    return keep
