# SPDX-License-Identifier: Apache-2.0
"""docs/internals/parity.rst: every option, every row, and tests that are really there."""

from __future__ import annotations

import re
from pathlib import Path

from slurm_ch.request import options
from tests import rows

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/internals/parity.rst").read_text()

ROWS = (
    "I1 I1a I2 I3 N1 N2 N3 N4 N5 T1 T2 T3 T4 T5 T6 T7 T8 T9 B1 B2 B3 B4 B5 B6 B7 H1 J1 J2 J3 J4 J5 J6 R1 R2 R2a R3 R4"
)

# Ours alone: ch-run has nothing of the kind.
OURS_ALONE = {"image-env", "join-timeout", "keep-keyring", "overlay", "platform", "pull", "userns"}


def table(title: str) -> list[str]:
    """Return the rows of the page's table below a title."""
    return rows.table(TEXT, title)


def test_every_row_has_its_tests() -> None:
    """What the page says is what the tests say: `python -m tests.rows` writes it."""
    named = set()
    for page, titles in rows.TABLES.items():
        text = page.read_text()
        assert rows.rendered(page) == text
        named |= {rows.key(row.split("\n")[0]) for title in titles for row in rows.table(text, title)}
    assert named == set(rows.marked())


def test_every_option_is_in_the_table() -> None:
    words = set(re.findall(r"--([a-z0-9-]+)", " ".join(row.split("\n     - ")[0] for row in table("Options"))))
    command = {option.name for option in options.OPTIONS if option.where & options.COMMAND}
    assert command - words == OURS_ALONE
    steps = set(re.findall(r"``--ch-([a-z0-9-]+)", "".join(table("Options"))))
    both = {option.name for option in options.OPTIONS if option.where == options.BOTH}
    assert both - steps - OURS_ALONE == set()
    assert steps - {option.name for option in options.OPTIONS if option.where & options.PLUGIN} == set()


def test_every_row_of_behaviour_is_in_the_table() -> None:
    names = [row.split("\n")[0] for row in table("Behaviour")]
    assert names[: len(ROWS.split())] == ROWS.split()


def test_every_difference_is_argued() -> None:
    compared = (ROOT / "tests/engine/test_like_ch_run.py").read_text()
    named = set(re.findall(r"# \[(.+?)\]|\. \[(.+?)\]", compared))
    names = {first or second for first, second in named}
    assert len(names) > 6
    for name in names:
        assert re.search(rf"^{re.escape(name)}\n~~", TEXT, re.MULTILINE), name
    for name in re.findall(r"`([^`]+)`_\b", TEXT):
        assert re.search(rf"^{re.escape(name)}\n~~", TEXT, re.MULTILINE), name


def test_every_test_that_a_page_names_is_there() -> None:
    pages = [*(ROOT / "docs").rglob("*.rst"), ROOT / "README.rst"]
    named = {found for page in pages for found in re.findall(r"``(tests/[\w/]+\.py)(?:::(\w+))?``", page.read_text())}
    assert len(named) > 100
    missing = [
        (path, name)
        for path, name in sorted(named)
        if not (ROOT / path).exists() or (name and f"def {name}(" not in (ROOT / path).read_text())
    ]
    assert missing == []
