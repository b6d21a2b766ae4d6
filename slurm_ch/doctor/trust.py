# SPDX-License-Identifier: Apache-2.0
"""Check who can read and who can change the files that steps run, by owner and mode of each file and its directories.

The checks run as the user whose steps run the files, and follow symbolic links as the kernel does.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from .. import errors
from . import as_user
from .findings import OK, PROBLEM, WARNING, Finding

if TYPE_CHECKING:
    import pwd
    from collections.abc import Iterator, Mapping, Sequence

# The largest number of findings: more have the same cause.
SHOWN = 5
_LINKS = 40
_ACCESS = {os.R_OK: "read", os.X_OK: "execute"}


def components(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield each directory through which the kernel resolves `path`, and finally the file, with its status; OSError."""
    here, todo, links = "/", path.split("/")[::-1], 0
    yield here, os.lstat(here)
    while todo:
        name = todo.pop()
        if name in ("", "."):
            continue
        if name == "..":
            here = os.path.dirname(here)
            continue
        full = os.path.join(here, name)
        status = os.lstat(full)
        if not stat.S_ISLNK(status.st_mode):
            yield full, status
            here = full
            continue
        links += 1
        if links > _LINKS:
            raise OSError(40, "Too many levels of symbolic links", full)
        target = os.readlink(full)
        todo += target.split("/")[::-1]
        if target.startswith("/"):
            here = "/"


def _hidden_owner() -> int:
    """Return the uid that stands for all unmapped owners in this user namespace; -1 in the initial one."""
    try:
        with open("/proc/self/uid_map") as file:
            if file.read().split() == ["0", "0", "4294967295"]:
                return -1
        with open("/proc/sys/kernel/overflowuid") as file:
            return int(file.read())
    except OSError:
        return -1


def faults(files: Mapping[str, Sequence[str]], access: Mapping[str, int]) -> list[tuple[str, str, str]]:
    """Return what is wrong with `files`, as grade, path and text; `access` is the access that users need, by name."""
    found: dict[str, tuple[str, str]] = {}
    hidden = _hidden_owner()
    for name, paths in files.items():
        for path in paths:
            try:
                for above, status in components(path):
                    if above not in found and (fault := _fault(status, hidden)):
                        found[above] = fault
            except OSError as error:
                found.setdefault(error.filename or path, (PROBLEM, f"users can't get to it: {error.strerror}"))
                continue
            if not os.access(path, access[name]):
                found[path] = (PROBLEM, f"users can't {_ACCESS[access[name]]} it")
    return [(grade, path, text) for path, (grade, text) in found.items()]


def _fault(status: os.stat_result, hidden: int) -> tuple[str, str] | None:
    mode = f"mode {stat.S_IMODE(status.st_mode):04o}"
    if status.st_uid not in (0, hidden):
        # A warning only: some sites have an account for their software.
        return WARNING, f"belongs to uid {status.st_uid}, who can change what steps run"
    # In a sticky directory, only root can rename root's files.
    if status.st_mode & stat.S_IWOTH and not (stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX):
        return PROBLEM, f"everybody can change what steps run ({mode})"
    if status.st_mode & stat.S_IWGRP and not (stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX):
        return WARNING, f"group {status.st_gid} can change what steps run ({mode})"
    return None


def below(directory: str) -> list[str]:
    """Return all files below a directory that can be listed."""
    return [os.path.join(place, name) for place, _, names in os.walk(directory) for name in sorted(names)]


def check(
    files: Mapping[str, Sequence[str]], access: Mapping[str, int], package: str | None, user: pwd.struct_passwd
) -> Iterator[Finding]:
    """Check `files`, grouped by name, and all files of the directory `package`, as `user` sees them."""

    def look() -> tuple[int, list[tuple[str, str, str]]]:
        everything = {**files, "package": below(package) if package else []}
        return sum(map(len, everything.values())), faults(everything, {**access, "package": os.R_OK})

    try:
        count, found = as_user.in_child(look, user)
    except errors.ChError as error:
        yield Finding(PROBLEM, "files", errors.describe(error), "")
        return
    for grade, path, text in found[:SHOWN]:
        verb = "chmod a+rX" if text.startswith("users can't") else "chown root" if "belongs" in text else "chmod go-w"
        yield Finding(grade, "files", f"{path}: {text}", f"{verb} {path}; make install sets the modes of its own files")
    if len(found) > SHOWN:
        grade = PROBLEM if any(one[0] == PROBLEM for one in found[SHOWN:]) else WARNING
        yield Finding(grade, "files", f"{len(found) - SHOWN} more like these", "the same for each of them")
    if not found:
        yield Finding(OK, "files", f"{count} files and all above them: root's, and only root can change them")
