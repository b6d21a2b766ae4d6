# SPDX-License-Identifier: Apache-2.0
"""The cache's small JSON files: next to an image, for a name, in a lock. A file may be damaged or missing."""

from __future__ import annotations

import errno
import json
import os

from .. import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_RECORD_MAX = 1 << 20


def read_record(path: str) -> dict[str, Any]:
    """Return the record in a file; an empty one if it is missing, unreadable or damaged."""
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read(_RECORD_MAX))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def remove(path: str) -> None:
    """Remove a file; failures are ignored."""
    try:
        os.unlink(path)
    except OSError as error:
        if error.errno != errno.ENOENT:
            log.debug(f"{path}: {error.strerror}")


def remove_tree(path: str) -> None:
    """Remove a directory and its contents; failures are ignored."""
    import shutil  # not at the top: it loads compression modules

    shutil.rmtree(path, ignore_errors=True)
