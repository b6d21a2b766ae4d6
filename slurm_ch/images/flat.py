# SPDX-License-Identifier: Apache-2.0
"""Write a merged tree as one tar stream, for the program that packs it. Nothing is unpacked to disk.

The layers are read a second time, and only the data of files that end up in the image
are copied.
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import TYPE_CHECKING

from .. import linux
from ..errors import ChError
from .layers import (
    BLOCK,
    BLOCK_DEVICE,
    CHARACTER,
    DIRECTORY,
    FILE,
    LINK,
    SYMLINK,
)
from .merge import BYTES_MAX, DISK, Layer, Node, Tree
from .stream import LayerError, Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_TIME_MAX = 0xFFFFFFFF
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s167s")
_OUTPUT = 1 << 18


class Flat:
    """A tree to be written as a tar archive. Its number of inodes and its size are known in advance.

    All files belong to root and are readable by their owner. Devices, and extended attributes
    other than user.*, are left out. `faithful` changes and leaves out nothing.
    """

    def __init__(self, tree: Tree, faithful: bool = False) -> None:
        self._tree = tree
        self._faithful = faithful
        self.inodes = 0
        self.bytes = 0  # of files
        self.written = 0  # of the archive
        seen: set[int] = set()
        for _, node in self._names():
            if id(node) in tree.linked:
                if id(node) in seen:
                    continue
                seen.add(id(node))
            self.inodes += 1
            if node.kind == FILE:
                self.bytes += node.size
        if self.bytes > tree.bytes_max:
            raise LayerError(f"unpacked, the image is larger than the limit of {tree.bytes_max >> 30} GiB")

    def _names(self) -> Iterator[tuple[bytes, Node]]:
        """Yield every name with its inode, a directory before its contents."""
        stack = [(b"./", self._tree.root)]
        yield stack[0]
        while stack:
            path, node = stack.pop()
            if path == b"./":
                path = b""
            assert node.children is not None
            for name, child in node.children.items():
                if child.children is not None:
                    inner = path + name + b"/"
                    stack.append((inner, child))
                    yield inner, child
                elif self._faithful or child.kind not in (CHARACTER, BLOCK_DEVICE):
                    yield path + name, child

    def write(self, fd: int, tick: Callable[[int], None] = lambda _: None) -> None:
        """Write the tar archive to `fd`; call `tick` from time to time with the number of bytes written."""
        out = _Output(fd, tick)
        tree = self._tree
        first: dict[int, bytes] = {}
        links: list[tuple[bytes, Node]] = []
        later: list[list[tuple[int, bytes, Node]]] = [[] for _ in tree.layers]
        for path, node in self._names():
            if id(node) in tree.linked:
                if id(node) in first:
                    links.append((path, node))
                    continue
                first[id(node)] = path
            if node.kind == FILE and node.layer >= 0 and node.size:
                later[node.layer].append((node.offset, path, node))
                continue
            out.add(self._header(path, node))
            if node.layer == DISK and node.kind == FILE:
                _copy_file(out, node)
            elif node.kind == FILE and isinstance(node.data, bytes):
                out.add(node.data)
                out.add(bytes(-len(node.data) % BLOCK))
        for layer, files in zip(tree.layers, later):
            self._write_files(out, layer, files)
            files.clear()
        for path, node in links:
            out.add(self._header(path, node, first[id(node)]))
        out.add(bytes(2 * BLOCK))
        out.flush()
        self.written = out.written

    def _write_files(self, out: _Output, layer: Layer, files: list[tuple[int, bytes, Node]]) -> None:
        if not files:
            return
        files.sort(key=lambda one: one[0])
        with Stream(layer.path, layer.what, BYTES_MAX) as stream:
            for offset, path, node in files:
                stream.skip(offset - stream.position)
                out.add(self._header(path, node))
                if node.sparse is None:
                    for piece in stream.pieces(node.size):
                        out.add(piece)
                else:
                    _write_sparse(out, stream, node)
                rest = -node.size % BLOCK
                if rest:
                    out.add(bytes(rest))

    def _header(self, path: bytes, node: Node, link: bytes | None = None) -> bytes:
        """Return an entry's header, with the extended headers before it."""
        kind, mode, owner, group, target, device = node.kind, node.mode, node.uid, node.gid, b"", (0, 0)
        xattrs = node.xattrs
        if not self._faithful:
            # As `chmod u+rX`: the user who runs the image owns all its files.
            mode |= 0o500 if kind == DIRECTORY or mode & 0o111 else 0o400
            owner = group = 0
            if xattrs is not None:
                xattrs = {key: value for key, value in xattrs.items() if key.startswith(b"user.")}
        if link is not None:
            kind, target, xattrs = LINK, link, None
        elif kind == SYMLINK:
            assert isinstance(node.data, bytes)
            target = node.data
        elif kind in (CHARACTER, BLOCK_DEVICE):
            assert isinstance(node.data, tuple)
            device = node.data
        before = b""
        if xattrs:
            records = b"".join(_pax(b"SCHILY.xattr." + key, value) for key, value in xattrs.items())
            before = _block(b"././@PaxHeader", b"x", len(records)) + records + bytes(-len(records) % BLOCK)
        if len(target) > 100:
            before += _long(b"K", target)
        if len(path) > 100:
            before += _long(b"L", path)
        size = node.size if kind == FILE else 0
        return before + _block(path[:100], kind, size, mode, owner, group, node.mtime, target[:100], device)


class _Output:
    """A buffered writer for the archive."""

    def __init__(self, fd: int, tick: Callable[[int], None]) -> None:
        self._fd = fd
        self._tick = tick
        # A buffer of constant size: new memory would be mapped, and cleared by the kernel, each time.
        self._buffer = bytearray(_OUTPUT)
        self._end = 0
        self.written = 0

    def add(self, data: bytes | memoryview) -> None:
        end = self._end + len(data)
        if end > _OUTPUT:
            self.flush()
            end = len(data)
            if end > _OUTPUT:
                self._write(memoryview(data))
                return
        self._buffer[self._end : end] = data
        self._end = end

    def flush(self) -> None:
        with memoryview(self._buffer) as data:
            self._write(data[: self._end])
        self._end = 0

    def _write(self, data: memoryview) -> None:
        while data:
            done = os.write(self._fd, data)
            self.written += done
            data = data[done:]
        self._tick(self.written)


def _copy_file(out: _Output, node: Node) -> None:
    """Copy a file of this host, with the size that it had before; ChError if it has become shorter."""
    assert isinstance(node.data, str)
    left = node.size
    try:
        # No links: somebody may have replaced a directory of the path by one.
        fd = linux.openat2(linux.AT_FDCWD, node.data, os.O_RDONLY | os.O_NONBLOCK, linux.RESOLVE_NO_SYMLINKS)
    except OSError as error:
        raise ChError(f"can't read {node.data}") from error
    try:
        while left:
            try:
                data = os.read(fd, min(left, 1 << 20))
            except OSError as error:
                raise ChError(f"can't read {node.data}") from error
            if not data:
                raise ChError(f"{node.data}: it became shorter while it was read")
            out.add(data)
            left -= len(data)
    finally:
        os.close(fd)
    out.add(bytes(-node.size % BLOCK))


def _write_sparse(out: _Output, stream: Stream, node: Node) -> None:
    assert node.sparse is not None
    at = 0
    for offset, size in [*node.sparse[1], (node.size, 0)]:
        while at < offset:
            gap = min(offset - at, _OUTPUT)
            out.add(bytes(gap))
            at += gap
        for piece in stream.pieces(size):
            out.add(piece)
        at += size


def _pax(key: bytes, value: bytes) -> bytes:
    """Return a record of an extended header; its length counts itself."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) > len(str(rest)):
        length += 1
    return b"%d %s=%s\n" % (length, key, value)


def _long(kind: bytes, name: bytes) -> bytes:
    """Return GNU's header for a name of more than 100 bytes; some readers fail on links in the newer pax format."""
    return _block(b"././@LongLink", kind, len(name) + 1) + name + bytes(BLOCK - len(name) % BLOCK)


def _field(value: int, width: int) -> bytes:
    """Return a number as a header's field: octal, or binary if that is too long."""
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    return (0x80 << 8 * (width - 1) | value).to_bytes(width, "big")


def _block(  # noqa: PLR0917  in a header's order
    name: bytes,
    kind: bytes,
    size: int,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime: int = 0,
    link: bytes = b"",
    device: tuple[int, int] = (0, 0),
) -> bytes:
    time = min(max(mtime, 0), _TIME_MAX)
    block = _HEADER.pack(
        name,
        _field(mode, 8),
        _field(uid, 8),
        _field(gid, 8),
        _field(size, 12),
        _field(time, 12),
        b"        ",
        kind,
        link,
        b"ustar  \0",
        b"",
        b"",
        _field(device[0], 8),
        _field(device[1], 8),
        b"",
    )
    # The lower half of Adler-32 is 1 + the sum of the bytes; a header's sum is below its modulus.
    total = (zlib.adler32(block) & 0xFFFF) - 1
    return block[:148] + b"%06o\0 " % total + block[156:]
