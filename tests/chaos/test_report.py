# SPDX-License-Identifier: Apache-2.0
"""docs/internals/reliability.rst shows the figures that docs/internals/reliability.json has, and they are all good."""

from __future__ import annotations

import json

from . import report


def test_the_page_shows_the_figures() -> None:
    figures = json.loads(report.FIGURES.read_text())
    assert report.split(report.PAGE.read_text())[1] == "\n" + report.render(figures)


def test_every_figure_is_shown_and_good() -> None:
    figures = json.loads(report.FIGURES.read_text())
    shown = {name for _, names, _ in report.FAULTS for name in names} | {name for _, name, _ in report.LOADS}
    ours = {name: row for name, row in figures.items() if not name.startswith(report.PEER)}
    assert set(ours) == shown
    assert not {
        name: row for name, row in ours.items() if row.get("problems") or row.get("failures") or row.get("left")
    }
