# SPDX-License-Identifier: Apache-2.0
"""Find and read this node's slurm.conf.

It is read as a file, not by Slurm's commands: these need slurmctld, which may be down.
"""

from __future__ import annotations

import os
import re

from .errors import ChError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

# The first two are copies that slurmd gets from slurmctld, on nodes without their own files.
SLURM_CONFS = (
    "/run/slurm/conf/slurm.conf",
    "/var/spool/slurmd/conf-cache/slurm.conf",
    "/etc/slurm/slurm.conf",
    "/etc/slurm-llnl/slurm.conf",
    "/usr/local/etc/slurm.conf",
)
# Included files may include others; this ends a circle.
_DEPTH = 16

_SETTING = re.compile(r"\s*(\w+)\s*=\s*(\S+)")
_INCLUDE = re.compile(r"\s*include\s+(\S+)", re.IGNORECASE)


def text(path: str) -> str:
    """Return a file's text; ChError if it can't be read."""
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError as error:
        raise ChError(f"can't read {path}") from error


def path(env: Mapping[str, str]) -> str | None:
    """Return the path of this node's slurm.conf, or None if it has none."""
    if env.get("SLURM_CONF"):
        return env["SLURM_CONF"]
    return next((path for path in SLURM_CONFS if os.path.exists(path)), None)


def settings(path: str, depth: int = 0) -> dict[str, str]:
    """Return the first setting of each line of slurm.conf and its includes, with names in lower case; ChError."""
    found: dict[str, str] = {}
    for line in text(path).splitlines():
        words = line.partition("#")[0]
        include = _INCLUDE.match(words)
        if include and depth < _DEPTH:
            name = os.path.join(os.path.dirname(path), include[1])
            if os.path.exists(name):
                found |= settings(name, depth + 1)
        setting = _SETTING.match(words)
        if setting:
            found[setting[1].lower()] = setting[2].strip('"')
    return found
