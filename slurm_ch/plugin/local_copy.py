# SPDX-License-Identifier: Apache-2.0
"""Find the copy of the image that --ch-broadcast has put on this node's own disk."""

from __future__ import annotations

import os
import stat

from .. import log
from ..request import parsers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..request.spec import Spec


def find(request: str, wanted: Spec) -> str | None:
    """Return the copy's path. If this node has none that belongs to the user, warn and return None: use the image."""
    path = parsers.broadcast_to(request)
    assert path is not None
    try:
        status = os.lstat(path)
    except OSError as error:
        reason = error.strerror
    else:
        # Somebody else who can write to the directory may have put another file there.
        if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022:
            return path
        reason = "not a file that you alone can write to"
    log.warning(f"{wanted.label('broadcast')}: {path}: {reason}; the image is read where it is")
    return None
