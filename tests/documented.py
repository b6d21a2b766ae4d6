# SPDX-License-Identifier: Apache-2.0
"""The commands of the users' pages, word for word: each block comes after a comment with its name."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def blocks(page: str, marker: str) -> dict[str, str]:
    """Return the page's marked blocks by their names."""
    found = re.findall(
        rf"^\.\. {marker}: (\S+)\n\n::\n\n((?:    .*\n|\n)+)", (ROOT / page).read_text(encoding="utf-8"), re.M
    )
    return {
        name: "".join(line[4:] or "\n" for line in block.splitlines(keepends=True)).strip() + "\n"
        for name, block in found
    }
