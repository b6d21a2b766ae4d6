# SPDX-License-Identifier: Apache-2.0
"""Find the values that sysctls will have after the next boot, from the kernel's command line and sysctl.d(5)."""

from __future__ import annotations

import fnmatch
import os
import re

# Of files with the same name, the one in the first directory counts. Files are read in the order of their names.
DIRECTORIES = ("/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d", "/lib/sysctl.d")
LAST = "/etc/sysctl.conf"
COMMAND_LINE = "/proc/cmdline"
OURS = "/etc/sysctl.d/99-slurm_ch.conf"

_LINE = re.compile(r"\s*-?\s*([^#;=\s]+)\s*=\s*(.*?)\s*$")


def remedy(name: str, value: str) -> str:
    """Return the commands that set a sysctl now and at each boot; `name` is its path."""
    return f"echo {name.replace('/', '.')}={value} >> {OURS}; sysctl -p {OURS}"


def _lines(path: str) -> list[str]:
    try:
        with open(path, errors="replace") as file:
            return file.read().splitlines()
    except OSError:
        return []


def files() -> list[str]:
    """Return the files that set sysctls at boot, in the order in which they are read."""
    found: dict[str, str] = {}
    for directory in DIRECTORIES:
        try:
            names = os.listdir(directory)
        except OSError:
            continue
        for name in names:
            if name.endswith(".conf"):
                found.setdefault(name, os.path.join(directory, name))
    return [*(found[name] for name in sorted(found)), LAST]


def at_boot(name: str) -> tuple[str, str] | None:
    """Return the value that a sysctl, named by its path, gets at boot, and the file that sets it; None if none does."""
    result = None
    for word in " ".join(_lines(COMMAND_LINE)).split():
        key, equals, value = word.partition("=")
        if equals and key.startswith("sysctl.") and key[len("sysctl.") :].replace(".", "/") == name:
            result = value, COMMAND_LINE
    for path in files():
        for number, line in enumerate(_lines(path), 1):
            match = _LINE.match(line)
            if match and fnmatch.fnmatchcase(name, match[1].replace(".", "/")):
                result = match[2], f"{path}:{number}"
    return result
