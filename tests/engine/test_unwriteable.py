# SPDX-License-Identifier: Apache-2.0
"""Directories of the image that belong to somebody else [B3]: covered, with all that is mounted in them kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.small_images import make_image

Good = Callable[..., str]


@pytest.fixture(scope="session")
def others_image(world_tmp: Path) -> Path:
    """A directory image that belongs to root."""
    root = make_image(world_tmp / "unwriteable", "root's")
    (root / "etc/kept").write_text("kept\n")
    return root


@pytest.mark.row("B3")
def test_b3_binds_in_a_covered_directory_stay(good: Good, others_image: Path, world_tmp: Path, user: str) -> None:
    source = world_tmp / "bound"
    source.write_text("bound\n")
    odd = world_tmp / "od d\\n"
    odd.write_text("odd\n")
    (others_image / "etc/od d\\n").touch()
    out = good(
        "-W", "-b", f"{odd}:/etc/od d\\n", "-b", f"{source}:/etc/new", others_image, "--",
        "sh", "-c", f"grep -c ^{user}: /etc/passwd /etc/group; cat /etc/kept /etc/new /etc/od*",
    )  # fmt: skip
    assert out == "/etc/passwd:1\n/etc/group:1\nkept\nbound\nodd\n"


def test_b3_a_directory_in_a_covered_one(good: Good, others_image: Path, world_tmp: Path) -> None:
    """An overlay on an overlay on an overlay is more than the kernel allows."""
    source = world_tmp / "bound"
    source.write_text("bound\n")
    (others_image / "var/spool/deep/er").mkdir(parents=True, exist_ok=True)
    (others_image / "var/spool/deep/kept").write_text("kept\n")
    places = ("/var/spool/new", "/var/spool/deep/new", "/var/spool/deep/er/new", "/var/new", "/new", "/new2")
    binds = [word for place in places for word in ("-b", f"{source}:{place}")]
    out = good("-W", *binds, others_image, "--", "cat", *places, "/var/spool/deep/kept")
    assert out == "bound\n" * 6 + "kept\n"
