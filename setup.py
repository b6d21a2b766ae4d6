# SPDX-License-Identifier: Apache-2.0
"""Build ch-join with the package, so that `pip install` gives a working `slurm-ch run`.

The plugin is not built here: it needs Slurm's headers, and belongs to the
site. All else is in pyproject.toml.
"""

from __future__ import annotations

import os
import subprocess
import sys

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py


class BuildWithChJoin(build_py):
    """As ever, then ch-join; in a checkout `make` does that."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        out = os.path.abspath(os.path.join(self.build_lib, "slurm_ch", "native"))
        subprocess.run(["make", "-C", "spank", f"OUT={out}", "programs"], check=True)
        subprocess.run([sys.executable, "etc/parts.py", out], check=True)


class Native(Distribution):
    """A distribution for one architecture, because of ch-join."""

    def has_ext_modules(self) -> bool:
        return True


setup(cmdclass={"build_py": BuildWithChJoin}, distclass=Native)
