# SPDX-License-Identifier: Apache-2.0
"""Small files of JSON in the cache: beside an image, for a name, in a lock. One may be damaged, or gone."""

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
    """Return the record in a file; an empty one where there is none that can be read."""
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read(_RECORD_MAX))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def remove(path: str) -> None:
    """Remove a file that may be gone, or stay."""
    try:
        os.unlink(path)
    except OSError as error:
        if error.errno != errno.ENOENT:
            log.debug(f"{path}: {error.strerror}")


def remove_tree(path: str) -> None:
    """Remove a directory with all that is in it, as far as that can be."""
    import shutil  # loads compressors

    shutil.rmtree(path, ignore_errors=True)
