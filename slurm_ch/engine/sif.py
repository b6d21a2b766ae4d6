# SPDX-License-Identifier: Apache-2.0
"""Find the root file system, a SquashFS, in an image file of Apptainer's (SIF).

The file begins with a header of 128 bytes. It names the place of a table of descriptors
of 585 bytes each. All numbers are little-endian, without padding:
https://github.com/apptainer/sif, pkg/sif/sif.go. Loaded only for such files.
"""

from __future__ import annotations

import os

from .. import agreement
from ..errors import ChError

_MAGIC = b"SIF_MAGIC\0"
_MAGIC_AT = 32
_HEADER_BYTES = 128
_DESCRIPTOR_BYTES = 585
_SQUASHFS_MAGIC = agreement.SQUASHFS_MAGIC.encode()
# Larger offsets are invalid.
_FILE_MAX = 1 << 62
# Apptainer writes 48.
_DESCRIPTORS_MAX = 4096

_PARTITION = 0x4004
_OCI_INDEX = 0x400A
# A partition's file system, and its purpose.
_SQUASHFS, _EXT3, _ARCHIVE, _RAW, _ENCRYPTED = range(1, 6)
_SYSTEM, _PRIMARY = 1, 2

_REFUSED = {
    _EXT3: "whose file system is ext3, which only root can mount",
    _ENCRYPTED: "which is encrypted",
    _ARCHIVE: "whose file system is an archive",
    _RAW: "whose file system is of no kind that it names",
}


def _number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little", signed=True)


def _refused(reference: str, what: str) -> ChError:
    return ChError(
        f"unknown image type: {reference}: an image of Apptainer's (SIF) {what}:"
        f" `apptainer build --sandbox DIR {reference}`, then name the directory"
    )


def offset(fd: int, reference: str) -> int | None:
    """Return the offset of the SquashFS in an image of Apptainer's, in bytes.

    None if the file is not such an image; ChError if it is one, but has no SquashFS that can be mounted.
    """
    head = os.pread(fd, _HEADER_BYTES, 0)
    if head[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] != _MAGIC:
        # Singularity 2 wrote one line, followed by the SquashFS.
        line = head.find(b"\n") + 1
        return line if head[line : line + len(_SQUASHFS_MAGIC)] == _SQUASHFS_MAGIC else None
    count, begin = _number(head, 88, 8), _number(head, 96, 8)
    if not 0 <= count <= _DESCRIPTORS_MAX or not _HEADER_BYTES <= begin < _FILE_MAX:
        raise _refused(reference, "that is damaged")
    table = os.pread(fd, count * _DESCRIPTOR_BYTES, begin)
    descriptors = [table[at : at + _DESCRIPTOR_BYTES] for at in range(0, len(table), _DESCRIPTOR_BYTES)]
    used = [one for one in descriptors if len(one) == _DESCRIPTOR_BYTES and one[4]]
    for kind in (_PRIMARY, _SYSTEM):
        for one in used:
            # 201 bytes that all descriptors have are followed by the partition's file system and purpose.
            if _number(one, 0, 4) == _PARTITION and _number(one, 205, 4) == kind:
                return _squashfs_offset(fd, one, reference)
    if any(_number(one, 0, 4) == _OCI_INDEX for one in used):
        raise _refused(reference, "that keeps its layers apart (OCI-SIF)")
    raise _refused(reference, "without a root file system")


def _squashfs_offset(fd: int, partition: bytes, reference: str) -> int:
    kind, begin = _number(partition, 201, 4), _number(partition, 17, 8)
    if kind in _REFUSED:
        raise _refused(reference, _REFUSED[kind])
    is_there = _HEADER_BYTES <= begin < _FILE_MAX and os.pread(fd, 4, begin) == _SQUASHFS_MAGIC
    if kind != _SQUASHFS or not is_there:
        raise _refused(reference, "without a SquashFS in it")
    return begin
