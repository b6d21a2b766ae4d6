# SPDX-License-Identifier: Apache-2.0
"""Parse --container-mounts: a list of SRC[:DST[:FLAGS]], tmpfs:DST[:OPTIONS] and umount:DST."""

from __future__ import annotations

from .. import lean_os as os
from ..errors import UsageError
from .spec import Bind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# Flags that are accepted and change nothing: mounts are always recursive, and mount points are always created.
_IGNORED = frozenset((
    "rw", "bind", "rbind", "private", "rprivate", "slave", "rslave", "defaults", "auto", "x-create=auto",
    "x-create=dir", "x-create=file",
))  # fmt: skip
_NO_SOURCES = ("tmpfs", "umount")
_KEPT = ("ro", "nosuid", "nodev", "noexec")


def _wrong(part: str, why: str) -> UsageError:
    return UsageError(f"--container-mounts={part}: {why}")


def without_source(parts: Sequence[str]) -> tuple[list[tuple[str, dict[str, str], str]], list[tuple[str, str]]]:
    """Return the parts for tmpfs (path, mount options, label), and those for umount (path, label)."""
    tmpfs_mounts, unmounted = [], []
    for part in parts:
        kind, _, rest = part.partition(":")
        dst, _, flags = rest.partition(":")
        if kind not in _NO_SOURCES:
            continue
        if not dst.startswith("/") or not dst.strip("/."):
            raise _wrong(part, f"{kind}: needs an absolute path other than /")
        label = f"--container-mounts={part}"
        if kind == "tmpfs":
            tmpfs_mounts.append((dst, _tmpfs_options(part, flags), label))
        elif flags.strip("+") not in ("", "x-detach"):
            raise _wrong(part, f"{flags} is not a flag of umount; the only one is x-detach")
        else:
            unmounted.append((dst, label))
    return tmpfs_mounts, unmounted


def _tmpfs_options(part: str, flags: str) -> dict[str, str]:
    options = {}
    for word in flags.split("+") if flags else ():
        name, equals, value = word.partition("=")
        if name in ("size", "mode", "nr_inodes") and equals and value:
            options[name] = value
        elif word not in _IGNORED and word not in ("nosuid", "nodev"):
            raise _wrong(part, f"{word or 'the empty word'} is not a flag that a user's tmpfs can have")
    return options


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:
        return "/"


def binds(parts: Sequence[str]) -> list[Bind]:
    """Return the parts that are binds."""
    return [_mount(part) for part in parts if part.partition(":")[0] not in _NO_SOURCES]


def _mount(part: str) -> Bind:
    src, colon, rest = part.partition(":")
    dst, colon2, flags = rest.partition(":")
    if not src.startswith(("/", ".")):
        raise _wrong(part, "the source is not a path: it has to begin with / or .")
    if (colon and not dst) or (colon2 and not flags):
        raise _wrong(part, "an empty field")
    dst = dst or src
    if not dst.startswith(("/", ".")):
        raise _wrong(part, f"the destination is not a path that begins with / or .: {dst}")
    words = flags.split("+") if flags else []
    for word in words:
        if word not in _IGNORED and word not in _KEPT:
            raise _wrong(part, f"{word or 'the empty word'} is not a flag that a user's mount can have")
    dst = os.path.normpath(os.path.join(_working_directory(), dst))
    if dst == "/":
        raise _wrong(part, "the destination can't be /")
    return Bind(src, dst, f"--container-mounts={part}", tuple(word for word in _KEPT if word in words))
