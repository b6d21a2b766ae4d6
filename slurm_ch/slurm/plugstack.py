# SPDX-License-Identifier: Apache-2.0
"""plugstack.conf: where it is, what it includes, and what it says of our plugin."""

from __future__ import annotations

import glob
import os
from typing import TYPE_CHECKING

from .. import slurm_conf
from ..paths import PLUGIN_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PLUGIN_DIRECTORIES = (
    "/usr/lib64/slurm",
    "/usr/lib/slurm",
    "/usr/local/lib/slurm",
    *sorted(glob.glob("/usr/lib/*/slurm-wlm")),
)
# Includes may include; a circle ends here.
_DEPTH = 16


class Entry:
    """Our plugin's line: where it stands, `required` or `optional`, the plugin's path, its arguments."""

    __slots__ = ("arguments", "kind", "path", "where")

    def __init__(self, where: str, kind: str, path: str, arguments: list[str]) -> None:
        self.where = where
        self.kind = kind
        self.path = path
        self.arguments = arguments


def path_of(conf: str, found: Mapping[str, str]) -> str:
    """Return where slurm.conf at `conf`, with the settings `found`, has its plugstack.conf."""
    return found.get("plugstackconfig") or os.path.join(os.path.dirname(conf), "plugstack.conf")


def entries(path: str, plugin_directories: tuple[str, ...] = PLUGIN_DIRECTORIES, depth: int = 0) -> Iterator[Entry]:
    """Yield our plugin's lines in plugstack.conf and all that it includes; ChError if one can't be read."""
    for number, line in enumerate(slurm_conf.text(path).splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        kind = words[0].lower()
        if kind == "include" and len(words) > 1 and depth < _DEPTH:
            for name in sorted(glob.glob(os.path.join(os.path.dirname(path), words[1]))):
                yield from entries(name, plugin_directories, depth + 1)
        elif kind in ("required", "optional") and len(words) > 1 and os.path.basename(words[1]) == PLUGIN_NAME:
            yield Entry(f"{path}:{number}", kind, _find(words[1], plugin_directories), words[2:])


def _find(name: str, directories: tuple[str, ...]) -> str:
    """Return a plugin's path; a mere name is looked for where Slurm has its plugins."""
    if "/" in name:
        return name
    found = [path for path in (os.path.join(one, name) for one in directories) if os.path.exists(path)]
    return found[0] if found else os.path.join(directories[0], name)
