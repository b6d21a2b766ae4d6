# SPDX-License-Identifier: Apache-2.0
"""Check other software that the `slurm-ch` command uses: Python modules, and programs in PATH.

Steps need only PyYAML of it, and only for device files in YAML. Missing software that a
node need not have is reported without a warning: images are usually made elsewhere.
"""

from __future__ import annotations

import glob
import importlib
import os
import shutil
import sys
from typing import TYPE_CHECKING

from .. import paths
from ..devices import library
from .findings import OK, WARNING, Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MODULES = (
    ("click", "the slurm-ch command"),
    ("yaml", "device files (CDI) in YAML"),
    ("posix_ipc", "named joins (slurm-ch run --join)"),
)
PROGRAMS = (
    # any one of these
    (("skopeo",), "slurm-ch pull, push and login"),
    (("tar2sqfs", "mksquashfs"), "slurm-ch pull and pack"),
)
_REMEDY = "install the distribution's package, or make install WHEELS=... again for this Python (docs/admins.rst)"


def check(env: Mapping[str, str]) -> Iterator[Finding]:
    """Check which software this installation's command finds, in its own directory `vendor` or on the machine."""
    vendor = os.path.join(os.path.dirname(paths.PACKAGE), "vendor")
    for name, use in MODULES:
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            text = f"{sys.executable} can't load {name}, which is for {use}: {error}"
            grade = WARNING if _is_vendored(vendor, name) or (name == "yaml" and _yaml_files(env)) else OK
            yield Finding(grade, "software", text, _REMEDY if grade == WARNING else "")
        else:
            yield Finding(OK, "software", f"{name}: {os.path.dirname(module.__file__ or '')}")
    for names, use in PROGRAMS:
        found = next(filter(None, (shutil.which(one, path=env.get("PATH")) for one in names)), None)
        text = found or f"no {' and no '.join(names)} in PATH, which is for {use}"
        yield Finding(OK, "software", text)


def _is_vendored(vendor: str, name: str) -> bool:
    """Whether the module was installed in `vendor`, and so should be found."""
    return bool(glob.glob(os.path.join(glob.escape(vendor), f"{name}*")))


def _yaml_files(env: Mapping[str, str]) -> bool:
    folders = library.directories(None, env)
    return any(glob.glob(os.path.join(folder, f"*.{ending}")) for folder in folders for ending in ("yaml", "yml"))
