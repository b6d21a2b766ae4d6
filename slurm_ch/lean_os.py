# SPDX-License-Identifier: Apache-2.0
"""The parts of `os` that the launcher needs. Loading `os` takes a millisecond, most of it for abstract collections.

System calls are those of the interpreter's module `posix`. Paths are str, never bytes.
"""

from __future__ import annotations

import _stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    # The type checker knows these names only from `os`.
    from os import *  # noqa: F403
    from os import _exit
else:
    from posix import *  # noqa: F403
    from posix import _exit  # noqa: F401


def fsencode(name: str) -> bytes:  # type: ignore[no-redef]
    """Return a file name as bytes, as os.fsencode does."""
    return name.encode(sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())


def fsdecode(name: bytes) -> str:  # type: ignore[no-redef]
    """Return a file name as str, as os.fsdecode does."""
    return name.decode(sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())


class path:  # type: ignore[no-redef]
    """The functions of `os.path` that are needed, for str only."""

    __slots__ = ()

    @staticmethod
    def join(first: str, *others: str) -> str:
        """Join paths; an absolute one replaces those before it."""
        for other in others:
            if other.startswith("/") or not first:
                first = other
            else:
                first = f"{first}{other}" if first.endswith("/") else f"{first}/{other}"
        return first

    @staticmethod
    def normpath(name: str) -> str:
        """Return the path without empty parts and "."; each ".." removes the part before it."""
        # Exactly two leading slashes are kept, as in os.path: POSIX leaves their meaning to the system.
        begin = "/" * (name.startswith("/") + (name[:2] == "//" != name[1:3]))
        parts: list[str] = []
        for part in name.split("/"):
            if part == ".." and (parts[-1:] == [".."] or not (parts or begin)):
                parts.append(part)
            elif part == "..":
                del parts[-1:]
            elif part not in ("", "."):
                parts.append(part)
        return begin + "/".join(parts) or "."

    @staticmethod
    def split(name: str) -> tuple[str, str]:
        """Return the parts before and after the last slash."""
        before, slash, last = name.rpartition("/")
        return before.rstrip("/") or before + slash, last

    @staticmethod
    def dirname(name: str) -> str:
        return path.split(name)[0]

    @staticmethod
    def basename(name: str) -> str:
        return name.rpartition("/")[2]

    @staticmethod
    def realpath(name: str) -> str:
        """Return the path with all symbolic links resolved; if it doesn't exist, only normalised."""
        try:
            fd = open(name, O_PATH | O_CLOEXEC)  # noqa: F405, SIM115
        except (OSError, ValueError):
            return path.normpath(path.join(getcwd(), name))  # noqa: F405
        try:
            return readlink(f"/proc/self/fd/{fd}")  # noqa: F405
        finally:
            close(fd)  # noqa: F405

    @staticmethod
    def exists(name: str) -> bool:
        return _mode(name) != 0

    @staticmethod
    def isdir(name: str) -> bool:
        return _stat.S_ISDIR(_mode(name))

    @staticmethod
    def samestat(one: stat_result, other: stat_result) -> bool:  # noqa: F405
        """Whether both describe the same file."""
        return one.st_ino == other.st_ino and one.st_dev == other.st_dev


def _mode(name: str) -> int:
    try:
        return stat(name).st_mode  # noqa: F405
    except (OSError, ValueError):
        return 0
