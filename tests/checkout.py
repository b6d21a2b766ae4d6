# SPDX-License-Identifier: Apache-2.0
"""The checkout's own files, also where it is a copy without git's directory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[1]


def files() -> Iterator[str]:
    """Yield the files below ROOT that .gitignore doesn't exclude."""
    made = [line.strip() for line in (ROOT / ".gitignore").read_text().splitlines() if line[:1] not in ("#", "")]

    def is_made(path: str) -> bool:
        name = path.rpartition("/")[2]
        return any(fnmatch("/" + path if "/" in one.rstrip("/") else name, one.rstrip("/")) for one in made)

    for folder, folders, names in os.walk(ROOT):
        above = os.path.relpath(folder, ROOT) + "/" if Path(folder) != ROOT else ""
        folders[:] = [name for name in folders if name != ".git" and not is_made(above + name)]
        # In a worktree, .git is a file.
        yield from (above + name for name in names if name != ".git" and not is_made(above + name))


def copy(to: Path) -> None:
    """Copy these files, except hidden ones and those in hidden directories, which no sdist has."""
    for name in files():
        if not name.startswith(".") and "/." not in name:
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
