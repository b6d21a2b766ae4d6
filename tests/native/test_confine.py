# SPDX-License-Identifier: Apache-2.0
"""The SquashFS server's confinement."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

from .made import SPANK


def test_nothing_but_serving(world_tmp: Path) -> None:
    program = world_tmp / "confine"
    sources = [Path(__file__).with_name("confine.c"), SPANK / "ch-squashfuse_ll/confine.c"]
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Wno-cast-function-type", "-static", "-pthread"]
    subprocess.run(["cc", *flags, "-o", program, *sources], check=True, capture_output=True, text=True)
    done = subprocess.run([program], check=False, capture_output=True, text=True, timeout=20)
    assert (done.stdout, done.returncode) == ("done\n", -signal.SIGABRT)
