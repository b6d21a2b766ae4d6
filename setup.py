# SPDX-License-Identifier: Apache-2.0
"""Build the static programs with the package, so that `pip install` gives a working `slurm-ch run`.

The command itself is one of them, copied to where pip installs programs; beside it lies
slurm-ch-python, in which pip writes the interpreter. The plugin is not built here: it needs
Slurm's headers, and belongs to the site. All else is in pyproject.toml.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

try:
    from setuptools.command.build_scripts import build_scripts
except ImportError:
    from distutils.command.build_scripts import build_scripts


class BuildWithPrograms(build_py):
    """As ever, then the programs; in a checkout `make` does that."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        out = os.path.abspath(os.path.join(self.build_lib, "slurm_ch", "native"))
        subprocess.run(["make", "-C", "spank", f"OUT={out}", f"PYTHON={sys.executable}", "programs"], check=True)
        os.unlink(os.path.join(out, ".compiled-with"))  # the build's own note
        subprocess.run([sys.executable, "etc/parts.py", out], check=True)


class BuildCommand(build_scripts):
    """The static program in the script's place, but in an editable install."""

    def run(self) -> None:
        build = self.get_finalized_command("build_py")
        super().run()
        if not build.editable_mode:
            built = os.path.join(build.build_lib, "slurm_ch", "native", "ch-join")
            shutil.copy(built, os.path.join(self.build_dir, "slurm-ch"))


class Native(Distribution):
    """A distribution for one architecture, because of ch-join."""

    def has_ext_modules(self) -> bool:
        return True


setup(cmdclass={"build_py": BuildWithPrograms, "build_scripts": BuildCommand}, distclass=Native)
