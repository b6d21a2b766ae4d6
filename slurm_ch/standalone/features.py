# SPDX-License-Identifier: Apache-2.0
"""Check for the features of `ch-run --feature`: whether this build and this machine have them."""

from __future__ import annotations

import errno
import os

from ..agreement import EXIT_NO_FEATURE
from ..engine.squashfs import SERVER
from ..errors import UsageError


def _squash() -> bool:
    return os.access(SERVER, os.X_OK)


def _seccomp() -> bool:
    return _mentions("/proc/sys/kernel/seccomp/actions_avail", "errno")


def _overlayfs() -> bool:
    # Only if the module is loaded: an ordinary user can't load it.
    return _mentions("/proc/filesystems", "overlay")


def _tmpfs_xattrs() -> bool:
    fd = os.memfd_create("slurm_ch-feature", os.MFD_CLOEXEC)
    try:
        os.setxattr(fd, "user.slurm_ch", b"")
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.EPERM):
            return False
        raise
    finally:
        os.close(fd)
    return True


def _mentions(path: str, word: str) -> bool:
    try:
        with open(path) as file:
            return word in file.read().split()
    except FileNotFoundError:
        return False


CHECKS = {
    "extglob": lambda: True,
    "gc": lambda: False,
    "json": lambda: True,
    "overlayfs": _overlayfs,
    "seccomp": _seccomp,
    "squash": _squash,
    "tmpfs-xattrs": _tmpfs_xattrs,
}


def status(name: str) -> int:
    """Return the exit status for the feature `name`: 0 if it is available; UsageError if it isn't known."""
    if name not in CHECKS:
        raise UsageError(f"--feature={name}: unknown; there are {', '.join(CHECKS)}")
    return 0 if CHECKS[name]() else EXIT_NO_FEATURE
