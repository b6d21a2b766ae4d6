# SPDX-License-Identifier: Apache-2.0
"""A file system with one file, image.sqfs, whose server stops answering: `hangfs.py MOUNTPOINT IMAGE OPERATION`.

Speaks FUSE's protocol on /dev/fuse itself (linux/fuse.h), so that it can do what no library lets it: take a
request and never answer. OPERATION is lookup, open or read: the first of that kind for the image, and all after
it, hang. Says "ready" on standard output, then "hanging" once it does. Ends with its standard input; needs root.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import struct
import sys

from slurm_ch import linux

ROOT, FILE = 1, 2
LOOKUP, GETATTR, OPEN, READ, RELEASE, FLUSH, INIT, OPENDIR = 1, 3, 14, 15, 18, 25, 26, 27
HANG = {"lookup": LOOKUP, "open": OPEN, "read": READ}


def attributes(node: int, size: int) -> bytes:
    mode = stat.S_IFDIR | 0o755 if node == ROOT else stat.S_IFREG | 0o644
    # ino, size, blocks, times, nanoseconds, mode, nlink, uid, gid, rdev, blksize, flags
    return struct.pack("=QQQQQQIIIIIIIIII", node, size, 1, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def answer(op: int, node: int, body: bytes, image: bytes) -> bytes | int:
    """Return the answer to a request, or an errno."""
    if op == INIT:
        # version 7.31, no readahead, no flags; max_write
        return struct.pack("=IIIIHHIIHHI28x", 7, 31, 0, 0, 12, 9, 65536, 1, 16, 0, 0)
    if op == LOOKUP:
        if body.rstrip(b"\0") != b"image.sqfs":
            return errno.ENOENT
        return struct.pack("=QQQQII", FILE, 0, 0, 0, 0, 0) + attributes(FILE, len(image))
    if op == GETATTR:
        return struct.pack("=QII", 0, 0, 0) + attributes(node, len(image))
    if op in (OPEN, OPENDIR):
        return struct.pack("=QII", 0, 0, 0)
    if op == READ:
        _, offset, size = struct.unpack_from("=QQI", body)
        return image[offset : offset + size]
    return b"" if op in (RELEASE, FLUSH) else errno.ENOSYS


def serve(fuse: int, image: bytes, hang: int) -> None:
    said = False
    while True:
        ready, _, _ = select.select([fuse, 0], [], [])
        if 0 in ready:
            return
        request = os.read(fuse, 1 << 17)
        _, op, unique, node = struct.unpack_from("=IIQQ", request)
        if op == hang:
            if not said:
                os.write(1, b"hanging\n")
                said = True
            continue
        if op in (2, 36, 42):  # FORGET, INTERRUPT, BATCH_FORGET: no answer
            continue
        found = answer(op, node, request[40:], image)
        error, data = (-found, b"") if isinstance(found, int) else (0, found)
        os.write(fuse, struct.pack("=IiQ", 16 + len(data), error, unique) + data)


def main(point: str, path: str, operation: str) -> None:
    fuse = os.open("/dev/fuse", os.O_RDWR)
    with open(path, "rb") as file:
        image = file.read()
    linux.mount("hangfs", point, "fuse", 0, f"fd={fuse},rootmode=40755,user_id=0,group_id=0,allow_other")
    try:
        os.write(1, b"ready\n")
        serve(fuse, image, HANG[operation])
    finally:
        linux.umount2(point, linux.MNT_DETACH)


main(*sys.argv[1:])
