# SPDX-License-Identifier: Apache-2.0
"""Get images from a site's own program, which is called like pyxis' importer: `PROGRAM get REFERENCE`.

pyxis also calls `PROGRAM release`. slurm_ch doesn't: that call doesn't name the image, and other steps may still
read the file.
"""

from __future__ import annotations

import os

from ..errors import ChError
from . import children

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from .reference import Reference


def get(program: str, reference: Reference, env: Mapping[str, str]) -> str:
    """Run the site's importer; return the path of the image that it prints. ChError on failure."""
    with children.memory_file() as out, children.memory_file() as messages:
        child = children.start([program, "get", reference.text], env, stdout=out, stderr=messages)
        try:
            status = child.wait()
        finally:
            children.stop(child)
        lines = children.last_words(messages).splitlines()
        if status:
            reason = "; ".join(lines[-3:]) or "it gives no reason"
            raise ChError(f"{reference.text}: the site's importer {program} failed with status {status}: {reason}")
        out.seek(0)
        lines = out.read(1 << 16).decode("utf-8", "surrogateescape").splitlines()
    path = lines[-1].strip() if lines else ""
    if not path.startswith("/") or not os.path.exists(path):
        raise ChError(f"{reference.text}: the site's importer {program} printed no path of an image: {path!r}")
    return path
