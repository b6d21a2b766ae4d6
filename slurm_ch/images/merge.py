# SPDX-License-Identifier: Apache-2.0
"""Layers become one tree in memory, which flat.py makes one tar stream of: nothing is unpacked.

The headers are replayed base first, as an unpacking would go: a layer's
whiteouts act on the layers below it, then its entries replace what is there.
What ends up in the image is known then.
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
# Unpacked, unless the site says otherwise.
BYTES_MAX = 512 << 30

WHITEOUT = b".wh."
# aufs's own; one of them says that a directory hides what is below.
_WHITEOUT_META = b".wh..wh."
OPAQUE = b".wh..wh..opq"

# As the kernel's, for symbolic links on the way.
_LINKS_MAX = 40

# Layers of our own: files in memory, and files of this host, whose `data` is the path.
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
    """Where a layer's bytes are, by which name messages know it, and what they must hash to, where that isn't known."""

    __slots__ = ("digest", "path", "what")

    def __init__(self, path: str, what: str, digest: str | None = None) -> None:
        self.path = path
        self.what = what
        self.digest = digest


class Tree:
    """The file system that the layers make."""

    def __init__(self, bytes_max: int = BYTES_MAX, tick: Callable[[], None] = lambda: None) -> None:
        self.root = Node(DIRECTORY, 0o755)
        self.layers: list[Layer] = []
        self.read = 0  # inflated bytes so far, all layers
        self.bytes_max = bytes_max
        self._left = bytes_max
        self._entries = 0
        self._tick = tick
        self._same: dict[int, int] = {}
        # Inodes that have had a second name, by their id: kept, or the id could be another's.
        self.linked: dict[int, Node] = {}

    def add(self, layer: Layer) -> None:
        """Put a layer on top; LayerError if it isn't one."""
        number = len(self.layers)
        self.layers.append(layer)
        # Side by side: a pair for each entry would be a third more.
        names: list[bytes] = []
        nodes: list[Node | bytes] = []
        gone: list[bytes] = []
        with Stream(layer.path, layer.what, self._left, layer.digest, self._tick) as stream:
            for entry in layers.entries(stream):
                self._entries += 1
                if self._entries > ENTRIES_MAX:
                    raise LayerError(f"{layer.what}: more than {ENTRIES_MAX} entries")
                name = _checked(entry.name, layer.what)
                directory, _, last = name.rpartition(b"/")
                if WHITEOUT in name and self._whiteout(directory, last, name, gone, layer.what):
                    continue
                names.append(name)
                nodes.append(self._node(entry, number, layer.what))
            stream.finish()
            self._left -= stream.position
            self.read += stream.position
        for name in gone:
            self._remove(name)
        parents: dict[bytes, Node] = {}
        names.reverse()
        nodes.reverse()
        while names:
            self._put(names.pop(), nodes.pop(), parents, layer.what)

    @staticmethod
    def _whiteout(directory: bytes, last: bytes, name: bytes, gone: list[bytes], what: str) -> bool:
        """Note what a whiteout removes; whether the entry is one, or otherwise no part of the image."""
        if last.startswith(WHITEOUT):
            if last.startswith(_WHITEOUT_META):
                if last == OPAQUE:
                    gone.append(directory + b"/")
                return True
            hidden = last[len(WHITEOUT) :]
            if hidden in (b"", b".", b".."):
                raise LayerError(f"{what}: a whiteout of nothing: {shown(name)}")
            gone.append(directory + b"/" + hidden if directory else hidden)
            return True
        return any(part.startswith(WHITEOUT) for part in directory.split(b"/"))

    def _node(self, entry: layers.Entry, number: int, what: str) -> Node | bytes:
        """Return the inode that an entry stands for, or the name that it is another one of."""
        if entry.kind == LINK:
            return _checked(entry.link.lstrip(b"/"), what)
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

    def _put(self, name: bytes, new: Node | bytes, parents: dict[bytes, Node], what: str) -> None:
        if isinstance(new, bytes):
            found = self._find(new)
            if found is None or found.children is not None:
                raise LayerError(f"{what}: {shown(name)}: a hard link to {shown(new)}, which is no file")
            node = self.linked[id(found)] = found
        else:
            node = new
        if not name:
            if node.children is None:
                raise LayerError(f"{what}: the root is no directory")
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
            # What was found through it may be elsewhere now.
            parents.clear()
        children[last] = node

    def _walk(self, path: bytes, what: str) -> Node:
        """Return the directory at `path`, links followed and what is missing made."""
        found = self._resolve(path, make=True)
        if found is None or found.children is None:
            raise LayerError(f"{what}: {shown(path)}: too many symbolic links")
        return found

    def _find(self, path: bytes) -> Node | None:
        """Return what is at `path`, links followed but for a last one."""
        directory, _, last = path.rpartition(b"/")
        parent = self._resolve(directory, make=False)
        return parent.children.get(last) if parent is not None and parent.children is not None else None

    def _remove(self, path: bytes) -> None:
        """Remove a name, or what is in a directory where the path ends with a slash."""
        directory, _, last = path.rpartition(b"/")
        parent = self._resolve(directory, make=False)
        if parent is None or parent.children is None:
            return
        if last:
            parent.children.pop(last, None)
        else:
            parent.children.clear()

    def _resolve(self, path: bytes, make: bool) -> Node | None:
        """Return what is at `path`, all links followed within the tree; None if it isn't there.

        With `make`, a missing directory is made, and what is in the way of one replaced.
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

    # What the image needs besides: no layer's links lead anything of it astray.

    def directory(self, path: str, mode: int = 0o755) -> Node:
        """Return the directory at `path`, made where it is missing; links are followed."""
        name = os.fsencode(path).strip(b"/")
        there = self._resolve(name, make=False)
        if there is not None and there.children is not None:
            return there
        made = self._walk(name, path)
        made.mode = mode
        return made

    def own_directory(self, name: str) -> Node:
        """Return the directory `name` in the root, in place of whatever else has that name."""
        children = self.root.children
        assert children is not None
        key = os.fsencode(name)
        there = children.get(key)
        if there is None or there.children is None:
            there = children[key] = Node(DIRECTORY, 0o755)
        return there

    def file(self, directory: Node, name: str, data: bytes) -> None:
        """Put a file of ours into a directory, in place of whatever has that name."""
        node = Node(FILE, 0o644)
        node.data, node.size = data, len(data)
        assert directory.children is not None
        directory.children[os.fsencode(name)] = node

    def empty_file(self, path: str) -> None:
        """Make sure that there is something at `path`, even where a link leads nowhere."""
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
        # It leads round in a circle: as good as missing.
        here, _, last = name.rpartition(b"/")
        children = self._walk(here, path).children
        assert children is not None
        children[last] = Node(FILE, 0o644)

    def has(self, path: str) -> bool:
        """Whether there is something at `path`, links followed."""
        return self._resolve(os.fsencode(path), make=False) is not None

    def read_file(self, path: str, limit: int) -> bytes | None:
        """Return a small file's bytes, or None where there is none of that size at `path`."""
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


def _checked(name: bytes, what: str) -> bytes:
    """Return a name without `./`, doubled and trailing slashes; LayerError where it leads out, or can't be one."""
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
