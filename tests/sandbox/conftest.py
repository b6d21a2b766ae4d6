# SPDX-License-Identifier: Apache-2.0
"""A cluster, and a place for one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm_ch.sandbox.cluster import Cluster

from .stage import processes_of


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(nodes=2, plugstack_lines=[]) as started:
        yield started


@pytest.fixture
def parent() -> Iterator[Path]:
    """Return a place for one cluster's directory; nothing may be left of it at the end."""
    # pytest's own directories are closed to others, and too deep for a socket's path.
    place = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    place.chmod(0o755)
    yield place
    assert list(place.iterdir()) == []
    assert processes_of(place) == []
    place.rmdir()
