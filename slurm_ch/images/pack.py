# SPDX-License-Identifier: Apache-2.0
"""Pack a tar stream into a SquashFS file, by tar2sqfs or mksquashfs.

Compression is zstd at level 3. Both programs default to level 15, which takes ten
times as long and saves an eighth.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import struct
import subprocess

from .. import log
from ..agreement import SQUASHFS_MAGIC
from ..errors import ChError
from . import children
from .settings import CACHE_VARIABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Source(Protocol):
        """A source of a tar archive. `inodes` is known when `write` returns, `bytes` is the size of all files."""

        inodes: int
        bytes: int
        written: int

        def write(self, fd: int, tick: Callable[[int], None]) -> None:
            """Write the tar archive to `fd`; call `tick` with the number of bytes written."""


_LEVEL = "3"
# The first version of mksquashfs that reads all tar archives correctly.
_MKSQUASHFS_SINCE = (4, 6)
_F_SETPIPE_SZ = 1031
_PIPE = 1 << 20

MAGIC = SQUASHFS_MAGIC.encode()
_SUPERBLOCK = struct.Struct("<4sI32sQ48x")
# tar2sqfs reports every failed write like this; most often the disk is full.
_WRITE_ERROR = re.compile(r"(?:finishing|flushing|writing|appending|adding).*I/O error", re.IGNORECASE | re.DOTALL)
_DISK_FULL = re.compile(r"no space left|disk quota exceeded|file too large", re.IGNORECASE)


class DiskFull(ChError):
    """The disk or the quota is full."""


class Packer:
    """A program that packs: its name, path and version."""

    __slots__ = ("name", "path", "version")

    def __init__(self, name: str, path: str, version: str) -> None:
        self.name = name
        self.path = path
        self.version = version

    def argv(self, out: str, threads: int) -> list[str]:
        """Return the command line that reads the archive from standard input."""
        if self.name == "tar2sqfs":
            options = ["--quiet", "--force", "--no-skip", "--compressor", "zstd", "--comp-extra", f"level={_LEVEL}"]
            return [self.path, *options, "--num-jobs", str(threads), out]
        options = ["-tar", "-noappend", "-quiet", "-no-progress", "-exit-on-error", "-comp", "zstd"]
        options += ["-Xcompression-level", _LEVEL, "-processors", str(threads), "-mem", "512M"]
        # Without these, the root directory would belong to the caller, and be writeable by everyone.
        return [self.path, "-", out, *options, "-root-mode", "0755", "-root-uid", "0", "-root-gid", "0"]


def find(wanted: str | None = None, path: str | None = None) -> Packer:
    """Return the program `wanted` (a name or a path), or else the best one installed; ChError if there is none.

    `path`: the PATH to search, None for this process's.
    """
    names = [wanted] if wanted else ["tar2sqfs", "mksquashfs"]
    reasons = []
    for name in names:
        program = shutil.which(name, path=path)
        base = os.path.basename(name)
        if base not in ("tar2sqfs", "mksquashfs"):
            raise ChError(f"packer={name}: neither tar2sqfs nor mksquashfs")
        if program is None:
            reasons.append(f"no {name}")
            continue
        version = _version(program, base)
        if base == "mksquashfs" and version < _MKSQUASHFS_SINCE:
            reasons.append(f"{program} is {'.'.join(map(str, version))}, too old to read archives")
            continue
        return Packer(base, program, ".".join(map(str, version)))
    raise ChError(
        f"can't pack an image: {', '.join(reasons)}; install squashfs-tools-ng, or squashfs-tools 4.6 or later"
    )


def _version(program: str, name: str) -> tuple[int, ...]:
    option = "-version" if name == "mksquashfs" else "--version"
    try:
        done = subprocess.run([program, option], check=False, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return (0,)
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", done.stdout + done.stderr)
    return tuple(int(part) for part in found.groups() if part) if found else (0,)


def pack(
    flat: Source,
    out: str,
    packer: Packer,
    *,
    threads: int = 1,
    niceness: int = 0,
    tick: Callable[[int], None] = lambda _: None,
) -> int:
    """Write the SquashFS file `out` and return its size in bytes; on failure, ChError, and the file is removed.

    `tick` is called several times a second with the number of the archive's bytes that are packed.
    """
    reader, writer = os.pipe()
    with children.memory_file() as messages:
        try:
            _widen(writer)
            env = {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}
            child = children.start(
                packer.argv(out, threads),
                {**env, "LC_ALL": "C"},
                stdin=reader,
                stdout=messages,
                stderr=messages,
                niceness=niceness,
            )
        except BaseException:
            os.close(writer)
            raise
        finally:
            os.close(reader)
        good = False
        try:
            try:
                flat.write(writer, tick)
                broken = False
            except OSError as error:
                if error.errno != errno.EPIPE:
                    raise
                broken = True
            finally:
                os.close(writer)
            status = children.wait(child, lambda: tick(flat.written))
            if status or broken:
                raise _failure(packer, status, children.last_words(messages), out)
            size = check(out, flat.inodes)
            good = True
        finally:
            # After an exception, the pipe may have ended between two entries: the packer must not finish the file.
            children.stop(child)
            if not good:
                _remove(out)
    return size


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _widen(pipe: int) -> None:
    try:
        fcntl.fcntl(pipe, _F_SETPIPE_SZ, _PIPE)
    except OSError as error:
        log.debug(f"a pipe of {_PIPE} bytes: {error.strerror}")


def _failure(packer: Packer, status: int, text: str, out: str) -> ChError:
    if _DISK_FULL.search(text) or _WRITE_ERROR.search(text):
        return disk_full(os.path.dirname(out))
    if status < 0:
        return ChError(children.killed(packer.name, status))
    line = "; ".join(text.splitlines()[-3:])
    return ChError(f"{packer.name} failed with status {status}: {line or 'it gives no reason'}")


def disk_full(directory: str) -> DiskFull:
    """Return the exception for a full file system or quota."""
    return DiskFull(
        f"{directory}: no room for the image (disk or quota full): `slurm-ch prune` removes cached images, "
        f"{CACHE_VARIABLE}=DIR puts them elsewhere"
    )


def write_error(error: OSError, path: str) -> ChError:
    """Return the exception for a file that could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(os.path.dirname(os.path.abspath(path)))
    return ChError(f"can't write {path}")


def check(path: str, inodes: int | None = None) -> int:
    """Return a SquashFS file's size in bytes; ChError if it is truncated, or has another number of inodes."""
    try:
        with open(path, "rb") as file:
            block = file.read(_SUPERBLOCK.size)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise ChError(f"can't read {path}") from error
    if len(block) < _SUPERBLOCK.size or block[:4] != MAGIC:
        raise ChError(f"{path}: not a SquashFS file")
    _, found, _, used = _SUPERBLOCK.unpack(block)
    if used > size:
        raise ChError(f"{path}: a SquashFS file that is truncated: {size} of {used} bytes")
    if inodes is not None and found != inodes:
        raise ChError(f"{path}: the SquashFS file has {found} inodes, not {inodes}: it is not published")
    return size
