# SPDX-License-Identifier: Apache-2.0
"""Find plugstack.conf, and read our plugin's lines in it and the files that it includes."""

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
# Included files may include others; this ends a circle.
_DEPTH = 16


class Entry:
    """A line for our plugin: `where` is FILE:LINE, `kind` required or optional, `path` the plugin's."""

    __slots__ = ("arguments", "kind", "path", "where")

    def __init__(self, where: str, kind: str, path: str, arguments: list[str]) -> None:
        self.where = where
        self.kind = kind
        self.path = path
        self.arguments = arguments


def path_of(conf: str, found: Mapping[str, str]) -> str:
    """Return the path of plugstack.conf; `conf` is slurm.conf's path, `found` its settings."""
    return found.get("plugstackconfig") or os.path.join(os.path.dirname(conf), "plugstack.conf")


def arguments(env: Mapping[str, str]) -> list[str]:
    """Return our plugin's arguments on this node, [] if it isn't configured; ChError if a file can't be read."""
    conf = slurm_conf.path(env)
    if conf is None:
        return []
    found = list(entries(path_of(conf, slurm_conf.settings(conf))))
    return found[0].arguments if found else []


def entries(path: str, plugin_directories: tuple[str, ...] = PLUGIN_DIRECTORIES, depth: int = 0) -> Iterator[Entry]:
    """Yield our plugin's lines in plugstack.conf and the files that it includes; ChError if one can't be read."""
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
    """Return a plugin's path; a name without a slash is looked up in Slurm's plugin directories."""
    if "/" in name:
        return name
    found = [path for path in (os.path.join(one, name) for one in directories) if os.path.exists(path)]
    return found[0] if found else os.path.join(directories[0], name)
