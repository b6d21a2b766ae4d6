# SPDX-License-Identifier: Apache-2.0
"""The version, commit and parts of an installation, from the file that its build has written."""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING

from .. import __version__, paths
from .findings import OK, PROBLEM, WARNING, Finding

if TYPE_CHECKING:
    from collections.abc import Iterator


def build(native: str = paths.NATIVE) -> dict[str, object]:
    """Return the build's record for the programs in `native`: version, commit, parts; empty if it can't be read."""
    try:
        with open(os.path.join(native, "parts.json")) as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def version(native: str = paths.NATIVE) -> str:
    """Return the version of this package, with the build's commit if that is known."""
    commit = build(native).get("commit")
    return f"{__version__} ({commit})" if commit else __version__


def check(native: str, plugin: str) -> Iterator[Finding]:
    """Check that the programs in `native` and the `plugin` that Slurm loads are all of the same build."""
    remedy = "make install again, all of it (docs/admins.rst)"
    known = build(native)
    listed = known.get("parts")
    if not isinstance(listed, dict):
        yield Finding(WARNING, "version", f"{native}: the list of what the build made is missing", remedy)
        return
    if known.get("version") != __version__:
        text = f"slurm-ch is {__version__}, the programs in {native} are {known.get('version')}"
        yield Finding(PROBLEM, "version", text, remedy)
        return
    wrong = []
    for name, digest in listed.items():
        try:
            # The plugin that Slurm loads may be in another directory.
            with open(plugin if name == paths.PLUGIN_NAME else os.path.join(native, name), "rb") as file:
                same = hashlib.sha256(file.read()).hexdigest() == digest
        except OSError:
            continue  # the checks of each program report that
        if not same:
            wrong.append(name)
    if wrong:
        yield Finding(PROBLEM, "version", f"of another build than the rest: {', '.join(wrong)}", remedy)
    else:
        yield Finding(OK, "version", f"slurm_ch {version(native)}: all parts are of one build")
