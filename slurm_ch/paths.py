# SPDX-License-Identifier: Apache-2.0
"""The paths of this installation's parts. All are relative to the package's directory."""

from __future__ import annotations

import os
import sys

from . import agreement

PACKAGE = os.path.dirname(os.path.abspath(__file__))
NATIVE = os.path.join(PACKAGE, "native")
LAUNCHER = os.path.normpath(os.path.join(NATIVE, agreement.DEFAULT_LAUNCHER))
COMMAND = os.path.normpath(os.path.join(NATIVE, agreement.PYTHON_PROGRAM))
CH_JOIN = os.path.join(NATIVE, "ch-join")
CH_RELAY = os.path.join(NATIVE, "ch-relay")
PLUGIN_NAME = "slurm_ch.so"
PLUGIN = os.path.join(NATIVE, PLUGIN_NAME)


def library_directories() -> list[str]:
    """Return the existing directories with slurm_ch's dependencies: an installation's `vendor`, or `.venv`."""
    parent = os.path.dirname(PACKAGE)
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    places = (os.path.join(parent, "vendor"), os.path.join(parent, ".venv", "lib", version, "site-packages"))
    return [place for place in places if os.path.isdir(place)]
