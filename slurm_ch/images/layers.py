# SPDX-License-Identifier: Apache-2.0
"""Parse the tar archive of a layer, read as a stream.

A layer is untrusted input: sizes, names and numbers are checked here, and a wrong one
raises a LayerError that names the layer. The standard library's tarfile isn't used: it
takes twice as long, and reads extended headers of any size into memory.
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import TYPE_CHECKING

from .stream import LayerError, Stream

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = 512
# Bytes of an extended header or a long name: more than any tool writes.
HEADER_MAX = 1 << 20
# The kernel's limits for a name and a path.
NAME_MAX = 255
PATH_MAX = 4096
# No file system allows larger files.
_SIZE_MAX = 1 << 62

FILE, LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
_DUMP_DIRECTORY = b"D"
_KINDS = {b"\0": FILE, b"7": FILE, **{kind: kind for kind in (b"0", b"1", b"2", b"3", b"4", b"5", b"6")}}
_SPARSE = b"S"
_LONG_NAME, _LONG_LINK = b"L", b"K"
_PAX, _PAX_SOLARIS, _PAX_GLOBAL = b"x", b"X", b"g"
# GNU's volume label, continued file, and directory with a list of names.
_SKIPPED = (b"V", b"M", b"N")

_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_ZEROS = bytes(BLOCK)
# The lower half of Adler-32 is 1 + the sum of the bytes, modulo this.
_ADLER = 65521


class Entry:
    """One header of the archive; `offset` is where its data begin in the inflated layer."""

    __slots__ = (
        "device", "gid", "kind", "link", "mode", "mtime", "name", "offset", "size", "sparse", "stored", "uid", "xattrs"
    )  # fmt: skip

    def __init__(self, name: bytes, kind: bytes) -> None:
        self.name = name
        self.kind = kind
        self.mode = 0
        self.uid = 0
        self.gid = 0
        self.mtime = 0
        self.size = 0  # of the file
        self.stored = 0  # of its data in the archive
        self.offset = 0
        self.link = b""
        self.device = (0, 0)
        self.xattrs: dict[bytes, bytes] | None = None
        self.sparse: list[tuple[int, int]] | None = None


def entries(stream: Stream) -> Iterator[Entry]:
    """Yield the archive's entries in order; LayerError if something is wrong.

    The entries' data are skipped. To get them, the layer has to be read again.
    """
    common: dict[bytes, bytes] = {}
    extended: dict[bytes, bytes] = {}
    while True:
        header = stream.read(BLOCK)
        if len(header) < BLOCK:
            if header:
                raise LayerError(f"{stream.what}: truncated")
            return
        if header == _ZEROS:
            return
        fields = _HEADER.unpack(header)
        _check_sum(stream, header, fields[6])
        kind = fields[7]
        if kind in (_PAX, _PAX_SOLARIS, _PAX_GLOBAL):
            records = _pax_records(stream, _extra(stream, fields[4]))
            (common if kind == _PAX_GLOBAL else extended).update(records)
        elif kind == _LONG_NAME:
            extended[b"path"] = _until_nul(_extra(stream, fields[4]))
        elif kind == _LONG_LINK:
            extended[b"linkpath"] = _until_nul(_extra(stream, fields[4]))
        else:
            entry = _entry(stream, header, fields, {**common, **extended} if common else extended)
            extended = {}
            rest = entry.offset + entry.stored + -entry.stored % BLOCK - stream.position
            if kind not in _SKIPPED:
                yield entry
            stream.skip(rest)


def _name_and_kind(fields: tuple[bytes, ...], extended: dict[bytes, bytes]) -> tuple[bytes, bytes]:
    kind = DIRECTORY if fields[7] == _DUMP_DIRECTORY else _KINDS.get(fields[7], FILE)
    name = extended.get(b"path")
    if name is None:
        name = _until_nul(fields[0])
        if fields[14][0] and fields[9][:6] == b"ustar\0":
            name = _until_nul(fields[14]) + b"/" + name
    if kind == FILE and name[-1:] == b"/":
        kind = DIRECTORY
    return name, kind


def _entry(stream: Stream, header: bytes, fields: tuple[bytes, ...], extended: dict[bytes, bytes]) -> Entry:
    name, kind = _name_and_kind(fields, extended)
    sparse = _old_sparse(stream, header) if fields[7] == _SPARSE else None
    entry = Entry(name, kind)
    entry.mode = _number(stream, fields[1]) & 0o7777
    entry.uid = _number(stream, extended.get(b"uid"), fields[2])
    entry.gid = _number(stream, extended.get(b"gid"), fields[3])
    entry.mtime = _seconds(stream, extended[b"mtime"]) if b"mtime" in extended else _number(stream, fields[5])
    entry.link = extended.get(b"linkpath") or _until_nul(fields[8])
    if kind in (CHARACTER, BLOCK_DEVICE):
        entry.device = (_number(stream, fields[12]), _number(stream, fields[13]))
    if kind == FILE or fields[7] not in _KINDS:
        entry.stored = _number(stream, extended.get(b"size"), fields[4])
        if not 0 <= entry.stored <= _SIZE_MAX:
            raise LayerError(f"{stream.what}: {shown(name)}: a size of {entry.stored}")
    entry.size = entry.stored if kind == FILE else 0
    entry.offset = stream.position
    if extended:
        entry.xattrs = {key[13:]: value for key, value in extended.items() if key.startswith(b"SCHILY.xattr.")} or None
    if sparse is not None:
        entry.sparse, entry.size = sparse
    elif kind == FILE and any(key.startswith(b"GNU.sparse.") for key in extended):
        _pax_sparse(stream, entry, extended)
    if entry.sparse is not None:
        _check_sparse(stream, entry)
    return entry


def shown(name: bytes) -> str:
    """Return a name for a message."""
    text = os.fsdecode(name)
    return text if len(text) <= 100 else text[:100] + "..."


def _until_nul(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


def _check_sum(stream: Stream, header: bytes, field: bytes) -> None:
    # Adler-32 contains the sum of the bytes, and is ten times as fast as a sum in Python.
    blank = header[:148] + b"        " + header[156:]
    text = field.replace(b"\0", b" ").strip()
    if text.isdigit() and len(text) <= 8:
        wanted = int(text, 8) if not set(text) & set(b"89") else -1
        if (wanted + 1) % _ADLER == zlib.adler32(blank) & 0xFFFF and wanted >= 0:
            return
        if wanted == sum(byte - 256 if byte > 127 else byte for byte in blank):  # old SunOS
            return
    raise LayerError(f"{stream.what}: not a tar archive, or damaged at byte {stream.position - BLOCK}")


def _number(stream: Stream, *fields: bytes | None) -> int:
    """Return the number of the first field that isn't None.

    With two fields, the first one is of an extended header, and decimal. The last one is octal or binary.
    """
    if len(fields) == 2 and fields[0] is not None:
        text = fields[0]
        if text.isdigit() and len(text) <= 20:
            return int(text)
        raise LayerError(f"{stream.what}: not a number: {shown(text)}")
    field = fields[-1]
    assert field is not None
    if field[0] & 0x80:
        if field[0] not in (0x80, 0xFF):
            raise LayerError(f"{stream.what}: a number out of range at byte {stream.position - BLOCK}")
        return int.from_bytes(field if field[0] == 0xFF else field[1:], "big", signed=field[0] == 0xFF)
    text = field.split(b"\0", 1)[0].strip()
    if not text:
        return 0
    try:
        if text.isdigit():
            return int(text, 8)
    except ValueError:
        pass
    raise LayerError(f"{stream.what}: not a number: {shown(text)}")


def _seconds(stream: Stream, text: bytes) -> int:
    """Return a time in whole seconds, rounded down."""
    whole, _, part = text.partition(b".")
    negative = whole[:1] == b"-"
    digits = whole[negative:] or b"0"
    if not digits.isdigit() or len(digits) > 20 or not (part.isdigit() or not part):
        raise LayerError(f"{stream.what}: not a time: {shown(text)}")
    return -int(digits) - bool(part.strip(b"0")) if negative else int(digits)


def _extra(stream: Stream, field: bytes) -> bytes:
    size = _number(stream, field)
    if not 0 <= size <= HEADER_MAX:
        raise LayerError(f"{stream.what}: an extended header of {size} bytes; the limit is {HEADER_MAX}")
    data = stream.read(size + -size % BLOCK)
    if len(data) < size:
        raise LayerError(f"{stream.what}: truncated")
    return data[:size]


def _pax_records(stream: Stream, data: bytes) -> dict[bytes, bytes]:
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(data) and data[at]:
        space = data.find(b" ", at, at + 9)
        length = data[at:space] if space > 0 else b""
        end = at + int(length) if length.isdigit() else 0
        if space < 0 or end <= space or end > len(data) or data[end - 1] != 0x0A:
            raise LayerError(f"{stream.what}: a wrong extended header before byte {stream.position}")
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals:
            raise LayerError(f"{stream.what}: a wrong extended header before byte {stream.position}")
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            # The oldest format repeats these keys. They are collected in the newer format's map, in order.
            before = records.get(b"GNU.sparse.map")
            value = value if before is None else before + b"," + value
            key = b"GNU.sparse.map"
        records[key] = value
        at = end
    return records


def _pairs(stream: Stream, numbers: list[bytes]) -> list[tuple[int, int]]:
    if len(numbers) % 2 or not all(one.isdigit() and len(one) <= 20 for one in numbers):
        raise LayerError(f"{stream.what}: a wrong map of a sparse file before byte {stream.position}")
    values = [int(one) for one in numbers]
    return list(zip(values[::2], values[1::2]))


def _pax_sparse(stream: Stream, entry: Entry, extended: dict[bytes, bytes]) -> None:
    entry.name = extended.get(b"GNU.sparse.name", entry.name)
    real = extended.get(b"GNU.sparse.realsize", extended.get(b"GNU.sparse.size", b"%d" % entry.size))
    entry.size = _number(stream, real, b"")
    if extended.get(b"GNU.sparse.major") == b"1":
        # The map precedes the data: lines of decimal numbers, padded to a whole block.
        blocks: list[bytes] = []
        lines, wanted = 0, 1
        while lines < wanted:
            if len(blocks) >= HEADER_MAX // BLOCK:
                raise LayerError(f"{stream.what}: {shown(entry.name)}: the map of a sparse file is too long")
            blocks.append(stream.read(BLOCK))
            if len(blocks[-1]) < BLOCK:
                raise LayerError(f"{stream.what}: truncated")
            lines += blocks[-1].count(b"\n")
            count = blocks[0].split(b"\n", 1)[0]
            wanted = 1 + 2 * (int(count) if count.isdigit() and len(count) < 8 else HEADER_MAX)
        text = b"".join(blocks)
        entry.sparse = _pairs(stream, text.split(b"\n")[1:wanted])
        entry.offset += len(text)
        entry.stored -= len(text)
    elif b"GNU.sparse.map" in extended:
        entry.sparse = _pairs(stream, [one for one in extended[b"GNU.sparse.map"].split(b",") if one])


def _old_sparse(stream: Stream, header: bytes) -> tuple[list[tuple[int, int]], int]:
    """Return the map in GNU's old format, and the size of the file."""
    pairs: list[tuple[int, int]] = []
    size = _number(stream, header[483:495])
    where, count, more = header[386:], 4, header[482]
    while True:
        for at in range(0, 24 * count, 24):
            if where[at : at + 12].strip(b"\0 ") or where[at + 12 : at + 24].strip(b"\0 "):
                pairs.append((_number(stream, where[at : at + 12]), _number(stream, where[at + 12 : at + 24])))
        if not more:
            return pairs, size
        where = stream.read(BLOCK)
        if len(where) < BLOCK or len(pairs) > HEADER_MAX // 24:
            raise LayerError(f"{stream.what}: a wrong map of a sparse file")
        count, more = 21, where[504]


def _check_sparse(stream: Stream, entry: Entry) -> None:
    end = total = 0
    for offset, size in entry.sparse or ():
        if offset < end or size < 0:
            total = -1
            break
        end, total = offset + size, total + size
    if total != entry.stored or end > entry.size or entry.size > _SIZE_MAX:
        raise LayerError(f"{stream.what}: {shown(entry.name)}: a wrong map of a sparse file")
