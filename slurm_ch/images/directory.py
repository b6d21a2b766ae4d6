# SPDX-License-Identifier: Apache-2.0
"""Read a directory of this host into a tree that can be packed."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Collection
from contextlib import ExitStack

from .. import linux, log
from ..errors import ChError
from . import additions
from .merge import DISK, ENTRIES_MAX, MEMORY, Node, Tree

_KINDS = {stat.S_IFDIR: b"5", stat.S_IFREG: b"0", stat.S_IFLNK: b"2", stat.S_IFIFO: b"6"}

# The container's files are bound over the image's, but have the image's entries: they are saved.
_MADE_FROM_IMAGE = ("/etc/passwd", "/etc/group")


def read(root: str, mounted: Collection[str] = ()) -> Tree:
    """Return the contents of the directory `root`, on its own file system; ChError if something can't be read.

    No part of the path `root` may be a symbolic link. Sockets and devices are left out. Mount points, which
    `mounted` lists, become empty directories or files.
    """
    tree = Tree()
    try:
        top = os.stat(root)
        if not stat.S_ISDIR(top.st_mode):
            raise ChError(f"{root}: not a directory")
        tree.root = _make_node(root, top)
        _walk(tree, root, top.st_dev, mounted)
    except OSError as error:
        raise ChError(f"can't pack {root}") from error
    additions.mount_points(tree)
    return tree


def mount_points() -> set[str]:
    """Return the mount points of this process's mount namespace, except /."""
    with open("/proc/self/mountinfo", "rb") as file:
        fields = [line.split()[4] for line in file]
    return {os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), one)) for one in fields} - {
        "/"
    }


def _walk(tree: Tree, root: str, device: int, mounted: Collection[str]) -> None:
    links: dict[int, Node] = {}
    stack = [(root, tree.root)]
    count = 0
    while stack:
        path, node = stack.pop()
        # No links: a user who can write there could replace a directory by one.
        fd = linux.openat2(linux.AT_FDCWD, path, os.O_RDONLY | os.O_DIRECTORY, linux.RESOLVE_NO_SYMLINKS)
        with ExitStack() as closing, os.scandir(fd) as entries:
            closing.callback(os.close, fd)
            for entry in entries:
                at = os.path.join(path, entry.name)
                status = entry.stat(follow_symlinks=False)
                if stat.S_IFMT(status.st_mode) not in _KINDS:
                    log.info(f"{at}: a socket or a device: left out")
                    continue
                count += 1
                covered = at in mounted and at not in _MADE_FROM_IMAGE
                if count > ENTRIES_MAX:
                    raise ChError(f"{root}: more than {ENTRIES_MAX} entries")
                child = links.get(status.st_ino)
                if child is None or covered:
                    child = _make_node(at, status)
                    if covered and child.layer == DISK:
                        child.layer, child.size, child.data = MEMORY, 0, b""
                    if status.st_nlink > 1 and child.children is None and status.st_dev == device:
                        links[status.st_ino] = child
                else:
                    tree.linked[id(child)] = child
                assert node.children is not None
                node.children[os.fsencode(entry.name)] = child
                if child.children is not None and status.st_dev == device and not covered:
                    stack.append((at, child))


def _make_node(path: str, status: os.stat_result) -> Node:
    node = Node(_KINDS[stat.S_IFMT(status.st_mode)], stat.S_IMODE(status.st_mode), int(status.st_mtime))
    node.uid, node.gid = status.st_uid, status.st_gid
    if stat.S_ISREG(status.st_mode):
        node.layer, node.size, node.data = DISK, status.st_size, path
    elif stat.S_ISLNK(status.st_mode):
        node.data = os.fsencode(os.readlink(path))
    names = [name for name in _attributes(path) if name.startswith("user.")]
    if names:
        node.xattrs = {os.fsencode(name): os.getxattr(path, name, follow_symlinks=False) for name in names}
    return node


def _attributes(path: str) -> list[str]:
    try:
        return os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
            return []
        raise
