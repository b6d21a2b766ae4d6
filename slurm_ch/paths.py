"""Where the parts of this installation are: all beside the package itself."""

from __future__ import annotations

import os

PACKAGE = os.path.dirname(os.path.abspath(__file__))
LAUNCHER = os.path.join(PACKAGE, "launch.py")
NATIVE = os.path.join(PACKAGE, "native")
CH_JOIN = os.path.join(NATIVE, "ch-join")
CH_RELAY = os.path.join(NATIVE, "ch-relay")
PLUGIN = os.path.join(NATIVE, "slurm_ch.so")
PYTHON = "/usr/bin/python3"
