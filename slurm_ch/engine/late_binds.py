# SPDX-License-Identifier: Apache-2.0
"""Show more of the host's directories in a container that runs already, for a step that joins it.

In the container's namespaces, the host's mounts can't be reached; outside, this user may not copy a mount.
So a child in new namespaces copies the mounts and sends the descriptors, and this process attaches them
after it has entered the container. Loaded only for that.
"""

from __future__ import annotations

import os
import socket

from .. import linux, log
from ..errors import ChError, describe
from . import namespaces, places
from .action import Build

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from typing import NoReturn


def copies(paths: Sequence[str], label: str) -> Mapping[str, int]:
    """Return descriptors of detached copies of these directories, by path; those that don't exist are skipped.

    On failure, warn that `label` may not work, and return nothing.
    """
    there = [path for path in paths if os.path.isdir(path)]
    if not there:
        return {}
    ours, childs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:
        _copy(there, childs)
    childs.close()
    message, descriptors, _, _ = socket.recv_fds(ours, 4096, len(there))
    ours.close()
    os.waitpid(child, 0)
    if len(descriptors) != len(there):
        _warn(there[0], label, message.decode("utf-8", "replace"))
        return {}
    return dict(zip(there, descriptors))


def _copy(paths: Sequence[str], to: socket.socket) -> NoReturn:
    try:
        namespaces.NewNamespaces((os.geteuid(), os.getegid()), (0, 0)).apply(Build())
        flags = linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC | linux.AT_RECURSIVE
        socket.send_fds(to, [b"."], [linux.open_tree(linux.AT_FDCWD, path, flags) for path in paths])
    except (ChError, OSError) as error:
        to.send(describe(error).encode())
    finally:
        os._exit(0)


def attach(trees: Mapping[str, int], label: str) -> None:
    """Attach the copies at their paths in the container that this process is in, unless it shows them already.

    Copies of directories that the host has removed, when other steps ended, are unmounted. Closes the descriptors.
    """
    for path in _removed(places.read_whole("/proc/self/mountinfo"), {os.path.dirname(path) for path in trees}):
        try:
            linux.umount2(path, linux.MNT_DETACH)
            os.rmdir(path)
        except OSError as error:
            log.debug(f"{path}: {error.strerror}")
    for path, fd in trees.items():
        try:
            os.makedirs(path, exist_ok=True)
            if not os.path.samestat(os.stat(path), os.fstat(fd)):
                linux.move_mount(fd, "", linux.AT_FDCWD, path, linux.MOVE_MOUNT_F_EMPTY_PATH)
        except OSError as error:
            _warn(path, label, error.strerror or "")
        os.close(fd)


def _removed(mountinfo: bytes, directories: Collection[str]) -> Iterator[str]:
    """Yield the mount points in these directories whose source the host has removed."""
    for line in mountinfo.splitlines():
        root, path = map(os.fsdecode, line.split(b" ")[3:5])
        if root.endswith("//deleted") and os.path.dirname(path) in directories:
            yield path


def _warn(path: str, label: str, why: str) -> None:
    log.warning(f"{label} may not work: can't show {path} in the container that is joined: {why}")
