# SPDX-License-Identifier: Apache-2.0
"""Format standard output for users: columns, and color on a terminal."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


def on_terminal() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout.isatty()


def colored() -> bool:
    """Whether to use color: on a terminal that supports it, unless NO_COLOR is set (no-color.org)."""
    return on_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, **style: Any) -> str:
    """Return `text` in a style of click's if color is used."""
    return click.style(text, **style) if text and colored() else text


def columns(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[list[str]]:
    """Return the rows with all cells of a column padded to the same width, except in the last column.

    `right`: the columns to align on the right.
    """
    widths = [max(map(len, cells)) for cells in zip(*rows)]
    last = len(widths) - 1
    return [
        [
            cell.rjust(width) if n in right else cell if n == last else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths))
        ]
        for row in rows
    ]


def table(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Return the lines of a table whose first row is its header."""
    lines = ["  ".join(cells).rstrip() for cells in columns(rows, right)]
    return [paint(lines[0], bold=True), *lines[1:]]
