# SPDX-License-Identifier: Apache-2.0
"""Lists the tests of each row of the tables in docs/internals: those with `@pytest.mark.row("I1", "--bind")`.

`python -m tests.rows` writes them into the pages.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The tables of each page, by the title of their section.
TABLES = {
    ROOT / "docs/internals/parity.rst": ("Options", "Behaviour"),
    ROOT / "docs/internals/reliability.rst": ("A join without the plugin", "Pulls that go wrong"),
}


def key(cell: str) -> str:
    """Return the name of a row by its first cell: the first long option there, or what is quoted, or all of it."""
    found = re.search(r"--[a-z][a-z0-9-]*", cell) or re.search(r"(?<=``)[^`]+", cell)
    return found[0] if found else cell.strip()


def marked() -> dict[str, list[str]]:
    """Return the tests by the rows that they hold."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            for decorator in getattr(node, "decorator_list", ()):
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.row":
                    for name in decorator.args:
                        rows = found.setdefault(ast.literal_eval(name), [])
                        rows.append(f"{path.relative_to(ROOT)}::{node.name}")  # type: ignore[attr-defined]
    return found


def table(text: str, title: str) -> list[str]:
    """Return the rows of the table below a title, without its head."""
    section = text.split(f"\n{title}\n---")[1].split("\n---", maxsplit=1)[0]
    return section.split("\n   * - ")[2:]


def rendered(page: Path) -> str:
    """Return the page with each row's tests."""
    tests, text = marked(), page.read_text()

    def row(match: re.Match[str]) -> str:
        names = [f"``{name}``" for name in tests.get(key(match[1]), ())]
        return f"   * - {match[1]}\n     - {match[2]}\n     -" + ",\n      ".join(f" {name}" for name in names) + "\n"

    for title in TABLES[page]:
        section = text.split(f"\n{title}\n---")[1].split("\n---", maxsplit=1)[0]
        body = section.split("     - tests\n", 1)[1]
        made = re.sub(r"   \* - (.*)\n     - (.*(?:\n       .*)*)\n     -(?:.*,\n)*.*\n", row, body)
        text = text.replace(body, made)
    return text


if __name__ == "__main__":
    for each in TABLES:
        each.write_text(rendered(each))
