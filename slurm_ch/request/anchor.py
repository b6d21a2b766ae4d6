# SPDX-License-Identifier: Apache-2.0
"""Make relative paths absolute in options that become defaults for later steps.

spank/plugin/anchor.c does the same for sbatch and salloc; a test compares the two.
"""

from __future__ import annotations

from .. import agreement
from ..devices import names
from .options import LIST, Option


def anchored(option: Option, value: str, directory: str) -> str:
    """Return an option's value with its relative paths prefixed by `directory`; of a list, one value per line.

    An image is separated from the directory by `/./`, because it may also be the name of one in the storage.
    """
    lines = value.split("\n") if option.kind == LIST else [value]
    return "\n".join(_line(option.paths, line, directory) for line in lines)


def _line(paths: str, line: str, directory: str) -> str:
    if paths == "image":
        return line if line.startswith(agreement.REFERENCE_BEGINNINGS) else _below(line, directory, "/./")
    if paths == "directory":
        return _below(line, directory)
    if paths == "directories":
        return ":".join(_below(part, directory) for part in line.split(":"))
    if paths == "file":
        whose = "host:" if line.startswith("host:") else ""
        return line if "=" in line or line.startswith("image:") else whose + _below(line[len(whose) :], directory)
    if paths not in ("binds", "devices"):
        return line
    escaped = "".join("\\" + letter if letter in ",:" else letter for letter in directory)
    parts = line.replace("\\,", "\0").split(",")
    shown = [_below(part, escaped) if paths == "binds" or names.is_file(part) else part for part in parts]
    return ",".join(shown).replace("\0", "\\,")


def _below(path: str, directory: str, between: str = "/") -> str:
    # With ~ or $, the user expected a shell to expand it; the node will report that.
    return path if not path or path[0] in "/~$" else directory + between + path
