# SPDX-License-Identifier: Apache-2.0
"""Where the parts of this installation are: all beside the package itself."""

from __future__ import annotations

import os
import sys

PACKAGE = os.path.dirname(os.path.abspath(__file__))
LAUNCHER = os.path.join(PACKAGE, "plugin", "launch.py")
NATIVE = os.path.join(PACKAGE, "native")
CH_JOIN = os.path.join(NATIVE, "ch-join")
CH_RELAY = os.path.join(NATIVE, "ch-relay")
PLUGIN_NAME = "slurm_ch.so"
PLUGIN = os.path.join(NATIVE, PLUGIN_NAME)
PYTHON = "/usr/bin/python3"


def library_directories() -> list[str]:
    """Return where what we need from others may be, beside the package: installed, and in a checkout."""
    parent = os.path.dirname(PACKAGE)
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    places = (os.path.join(parent, "vendor"), os.path.join(parent, ".venv", "lib", version, "site-packages"))
    return [place for place in places if os.path.isdir(place)]
