# SPDX-License-Identifier: Apache-2.0
"""Merge layers into one tree in memory, which flat.py writes as a tar stream. Nothing is unpacked to disk.

Layers are added from the base up, and only their headers are read. A layer's whiteouts
remove files of the layers below; then its entries are added, and replace existing ones.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from . import layers
from .layers import (
    BLOCK,
    BLOCK_DEVICE,
    CHARACTER,
    DIRECTORY,
    FILE,
    LINK,
    NAME_MAX,
    PATH_MAX,
    SYMLINK,
    shown,
)
from .stream import LayerError, Stream

if TYPE_CHECKING:
    from collections.abc import Callable

ENTRIES_MAX = 5_000_000
# The largest unpacked image, unless the site sets another limit.
BYTES_MAX = 512 << 30

WHITEOUT = b".wh."
# Special names of aufs. OPAQUE in a directory hides the directory's contents in the layers below.
_WHITEOUT_META = b".wh..wh."
OPAQUE = b".wh..wh..opq"

# The kernel's limit for symbolic links in a path.
_LINKS_MAX = 40

# In the place of a layer's number: files in memory, and files of this host, whose `data` is the path.
MEMORY = -1
DISK = -2


class Node:
    """An inode. A directory has `children`; `data` is a link's target, a device's numbers, or a file's bytes."""

    __slots__ = (
        "children",
        "data",
        "gid",
        "kind",
        "layer",
        "mode",
        "mtime",
        "offset",
        "size",
        "sparse",
        "uid",
        "xattrs",
    )

    def __init__(self, kind: bytes, mode: int, mtime: int = 0) -> None:
        self.kind = kind
        self.mode = mode
        self.uid = 0
        self.gid = 0
        self.mtime = mtime
        self.layer = MEMORY
        self.offset = 0
        self.size = 0
        self.data: object = None
        self.sparse: tuple[int, list[tuple[int, int]]] | None = None
        self.xattrs: dict[bytes, bytes] | None = None
        self.children: dict[bytes, Node] | None = {} if kind == DIRECTORY else None


class Layer:
    """A layer's file, its name for messages, and the digest to check, or None if it has been checked."""

    __slots__ = ("digest", "path", "what")

    def __init__(self, path: str, what: str, digest: str | None = None) -> None:
        self.path = path
        self.what = what
        self.digest = digest


class Tree:
    """The merged file system; `read` counts the inflated bytes of all layers."""

    def __init__(self, bytes_max: int = BYTES_MAX, tick: Callable[[], None] = lambda: None) -> None:
        self.root = Node(DIRECTORY, 0o755)
        self.layers: list[Layer] = []
        self.read = 0
        self.bytes_max = bytes_max
        self._left = bytes_max
        self._entries = 0
        self._tick = tick
        self._same: dict[int, int] = {}
        # Inodes with more than one name, by their Python id. They are kept, so that no id is reused.
        self.linked: dict[int, Node] = {}

    def add(self, layer: Layer) -> None:
        """Add a layer on top of the others; LayerError if it is invalid."""
        number = len(self.layers)
        self.layers.append(layer)
        # Two lists: a tuple for each entry would take a third more memory.
        names: list[bytes] = []
        nodes: list[Node | bytes] = []
        removed: list[bytes] = []
        with Stream(layer.path, layer.what, self._left, layer.digest, self._tick) as stream:
            for entry in layers.entries(stream):
                self._entries += 1
                if self._entries > ENTRIES_MAX:
                    raise LayerError(f"{layer.what}: more than {ENTRIES_MAX} entries")
                name = _check_name(entry.name, layer.what)
                directory, _, last = name.rpartition(b"/")
                if WHITEOUT in name and self._whiteout(directory, last, name, removed, layer.what):
                    continue
                names.append(name)
                nodes.append(self._node(entry, number, layer.what))
            stream.finish()
            self._left -= stream.position
            self.read += stream.position
        for name in removed:
            self._remove(name)
        parents: dict[bytes, Node] = {}
        names.reverse()
        nodes.reverse()
        while names:
            self._insert(names.pop(), nodes.pop(), parents, layer.what)

    @staticmethod
    def _whiteout(directory: bytes, last: bytes, name: bytes, removed: list[bytes], what: str) -> bool:
        """Return whether the entry is a whiteout, or in a directory named like one; append what it removes."""
        if last.startswith(WHITEOUT):
            if last.startswith(_WHITEOUT_META):
                if last == OPAQUE:
                    removed.append(directory + b"/")
                return True
            hidden = last[len(WHITEOUT) :]
            if hidden in (b"", b".", b".."):
                raise LayerError(f"{what}: a whiteout of nothing: {shown(name)}")
            removed.append(directory + b"/" + hidden if directory else hidden)
            return True
        return any(part.startswith(WHITEOUT) for part in directory.split(b"/"))

    def _node(self, entry: layers.Entry, number: int, what: str) -> Node | bytes:
        """Return an entry's inode, or for a hard link the name of its target."""
        if entry.kind == LINK:
            return _check_name(entry.link.lstrip(b"/"), what)
        same = self._same.setdefault
        node = Node(entry.kind, same(entry.mode, entry.mode), same(entry.mtime, entry.mtime))
        node.uid, node.gid = same(entry.uid, entry.uid), same(entry.gid, entry.gid)
        node.layer = number
        node.xattrs = entry.xattrs
        if entry.kind == FILE:
            node.offset = entry.offset
            node.size = same(entry.size, entry.size) if entry.size < BLOCK else entry.size
            if entry.sparse is not None:
                node.sparse = (entry.stored, entry.sparse)
        elif entry.kind == SYMLINK:
            if not entry.link or len(entry.link) >= PATH_MAX or b"\0" in entry.link:
                raise LayerError(f"{what}: {shown(entry.name)}: a symbolic link to {shown(entry.link)!r}")
            node.data = entry.link
        elif entry.kind in (CHARACTER, BLOCK_DEVICE):
            node.data = entry.device
        return node

    def _insert(self, name: bytes, new: Node | bytes, parents: dict[bytes, Node], what: str) -> None:
        if isinstance(new, bytes):
            found = self._find(new)
            if found is None or found.children is not None:
                raise LayerError(f"{what}: {shown(name)}: a hard link to {shown(new)}, which is not a file")
            node = self.linked[id(found)] = found
        else:
            node = new
        if not name:
            if node.children is None:
                raise LayerError(f"{what}: the root is not a directory")
            node.children, self.root = self.root.children, node
            parents.clear()
            return
        directory, _, last = name.rpartition(b"/")
        parent = parents.get(directory)
        if parent is None:
            parent = self._walk(directory, what)
            parents[directory] = parent
        children = parent.children
        assert children is not None
        old = children.get(last)
        if old is not None and (old.children is not None or old.kind == SYMLINK) and old is not node:
            if old.children is not None and node.children is not None:
                node.children = old.children
            # Paths through the old entry may lead elsewhere now.
            parents.clear()
        children[last] = node

    def _walk(self, path: bytes, what: str) -> Node:
        """Return the directory at `path`; follow links, and create missing directories."""
        found = self._resolve(path, make=True)
        if found is None or found.children is None:
            raise LayerError(f"{what}: {shown(path)}: too many symbolic links")
        return found

    def _find(self, path: bytes) -> Node | None:
        """Return the node at `path`, or None; follow links except in the last part."""
        directory, _, last = path.rpartition(b"/")
        parent = self._resolve(directory, make=False)
        return parent.children.get(last) if parent is not None and parent.children is not None else None

    def _remove(self, path: bytes) -> None:
        """Remove a name; if the path ends with a slash, remove the directory's contents."""
        directory, _, last = path.rpartition(b"/")
        parent = self._resolve(directory, make=False)
        if parent is None or parent.children is None:
            return
        if last:
            parent.children.pop(last, None)
        else:
            parent.children.clear()

    def _resolve(self, path: bytes, make: bool) -> Node | None:
        """Return the node at `path`, or None; follow all links, within the tree.

        With `make`, create missing directories, and replace files that are in their place.
        """
        todo = [part for part in reversed(path.split(b"/")) if part and part != b"."]
        trail = [self.root]
        links = 0
        while todo:
            part = todo.pop()
            if part == b"..":
                if len(trail) > 1:
                    trail.pop()
                continue
            here = trail[-1]
            children = here.children
            assert children is not None
            child = children.get(part)
            if child is not None and child.kind == SYMLINK:
                links += 1
                if links > _LINKS_MAX:
                    return None
                target = child.data
                assert isinstance(target, bytes)
                if target[:1] == b"/":
                    trail = trail[:1]
                todo += [one for one in reversed(target.split(b"/")) if one and one != b"."]
                continue
            if child is None or child.children is None:
                if not make:
                    return child if child is not None and not todo else None
                if len(part) > NAME_MAX:
                    return None
                child = children[part] = Node(DIRECTORY, 0o755)
            trail.append(child)
        return trail[-1]

    # Additions to the image. Links of the layers are followed only within the tree.

    def directory(self, path: str, mode: int = 0o755) -> Node:
        """Return the directory at `path`; follow links, and create it if it is missing."""
        name = os.fsencode(path).strip(b"/")
        there = self._resolve(name, make=False)
        if there is not None and there.children is not None:
            return there
        made = self._walk(name, path)
        made.mode = mode
        return made

    def own_directory(self, name: str) -> Node:
        """Return the directory `name` in the root; create it if it is missing or not a directory."""
        children = self.root.children
        assert children is not None
        key = os.fsencode(name)
        there = children.get(key)
        if there is None or there.children is None:
            there = children[key] = Node(DIRECTORY, 0o755)
        return there

    def file(self, directory: Node, name: str, data: bytes) -> None:
        """Add a file to a directory, replacing an existing entry."""
        node = Node(FILE, 0o644)
        node.data, node.size = data, len(data)
        assert directory.children is not None
        directory.children[os.fsencode(name)] = node

    def empty_file(self, path: str) -> None:
        """Create an empty file at `path` if it doesn't exist; for a dangling link, create its target."""
        name = os.fsencode(path).strip(b"/")
        if self._resolve(name, make=False) is not None:
            return
        here, _, last = name.rpartition(b"/")
        for _ in range(_LINKS_MAX):
            parent = self._walk(here, path)
            assert parent.children is not None
            there = parent.children.get(last)
            if there is None:
                parent.children[last] = Node(FILE, 0o644)
                return
            assert isinstance(there.data, bytes)
            target = there.data if there.data[:1] == b"/" else here + b"/" + there.data
            here, _, last = target.strip(b"/").rpartition(b"/")
            if last in (b"", b".", b".."):
                break
        # The links form a circle: replace the first one.
        here, _, last = name.rpartition(b"/")
        children = self._walk(here, path).children
        assert children is not None
        children[last] = Node(FILE, 0o644)

    def has(self, path: str) -> bool:
        """Whether `path` exists; follows links."""
        return self._resolve(os.fsencode(path), make=False) is not None

    def read_file(self, path: str, limit: int) -> bytes | None:
        """Return the contents of the file at `path`; None if it is missing or larger than `limit` bytes."""
        node = self._resolve(os.fsencode(path).strip(b"/"), make=False)
        if node is None or node.kind != FILE or node.size > limit or node.sparse is not None:
            return None
        if node.layer == MEMORY:
            return node.data if isinstance(node.data, bytes) else b""
        if node.layer == DISK:
            return None
        layer = self.layers[node.layer]
        with Stream(layer.path, layer.what, BYTES_MAX) as stream:
            stream.skip(node.offset)
            return stream.read(node.size)


def _check_name(name: bytes, what: str) -> bytes:
    """Return a name without `./`, doubled and trailing slashes; LayerError if it is invalid or leads out."""
    if b"\0" in name:
        raise LayerError(f"{what}: a name with a NUL in it: {shown(name)!r}")
    plain = b"./" not in name and b"//" not in name and b"/." not in name and name[-1:] != b"/"
    if not plain or name[:1] in (b"/", b"."):
        parts = name.split(b"/")
        if b".." in parts:
            raise LayerError(f"{what}: a name with .. in it: {shown(name)}")
        if name[:1] == b"/" and name.strip(b"/."):
            raise LayerError(f"{what}: an absolute name: {shown(name)}")
        name = b"/".join([part for part in parts if part not in (b"", b".")])
    if len(name) > NAME_MAX and (len(name) >= PATH_MAX or max(map(len, name.split(b"/"))) > NAME_MAX):
        raise LayerError(f"{what}: a name that is too long: {shown(name)}")
    return name
