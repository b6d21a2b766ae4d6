# SPDX-License-Identifier: Apache-2.0
"""A site's own program that provides images, with the protocol of pyxis' importer.

pyxis calls `PROGRAM release` too. Our steps read the file itself, each until it ends and on all of its nodes,
and that call doesn't say which image is meant: so it is not made.
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
    """Have the site's importer get an image; return the path that it prints."""
    with children.words_file() as out, children.words_file() as said:
        child = children.start([program, "get", reference.text], env, stdout=out, stderr=said)
        try:
            status = child.wait()
        finally:
            children.stop(child)
        words = children.words(said).splitlines()
        if status:
            reason = "; ".join(words[-3:]) or "it gives no reason"
            raise ChError(f"{reference.text}: the site's importer {program} failed with status {status}: {reason}")
        out.seek(0)
        lines = out.read(1 << 16).decode("utf-8", "surrogateescape").splitlines()
    path = lines[-1].strip() if lines else ""
    if not path.startswith("/") or not os.path.exists(path):
        raise ChError(f"{reference.text}: the site's importer {program} printed no path of an image: {path!r}")
    return path
