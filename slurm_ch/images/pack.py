# SPDX-License-Identifier: Apache-2.0
"""A tar stream becomes a SquashFS file, by the best program there is.

zstd at level 3, said explicitly: both programs default to 15, which takes ten
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
        """What is packed: how many inodes it has is known at the latest when it is written."""

        inodes: int
        bytes: int
        written: int

        def write(self, fd: int, tick: Callable[[int], None]) -> None:
            """Write the tar archive."""


_LEVEL = "3"
# mksquashfs reads tar archives since 4.6, and from then on gets all of them right.
_MKSQUASHFS_SINCE = (4, 6)
_F_SETPIPE_SZ = 1031
_PIPE = 1 << 20

MAGIC = SQUASHFS_MAGIC.encode()
_SUPERBLOCK = struct.Struct("<4sI32sQ48x")
# tar2sqfs's words for every error of a write; a failing disk is the rarer of them.
_WRITE_ERROR = re.compile(r"(?:finishing|flushing|writing|appending|adding).*I/O error", re.IGNORECASE | re.DOTALL)
_DISK_FULL = re.compile(r"no space left|disk quota exceeded|file too large", re.IGNORECASE)


class DiskFull(ChError):
    """There is no room for what was to be written."""


class Packer:
    """The program: its name, its path and its version."""

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
        # Else the root is the caller's, and writeable by all.
        return [self.path, "-", out, *options, "-root-mode", "0755", "-root-uid", "0", "-root-gid", "0"]


def find(wanted: str | None = None, path: str | None = None) -> Packer:
    """Return the program `wanted` (a name or a path), or the best one there is; ChError if there is none."""
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
    """Write the SquashFS file `out` and return its size; ChError, and no file, if anything is wrong with it.

    `tick` hears, at least every fraction of a second, how much of the archive is done.
    """
    reader, writer = os.pipe()
    with children.words_file() as said:
        try:
            _widen(writer)
            env = {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}
            child = children.start(
                packer.argv(out, threads),
                {**env, "LC_ALL": "C"},
                stdin=reader,
                stdout=said,
                stderr=said,
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
                raise _failure(packer, status, children.words(said), out)
            size = check(out, flat.inodes)
            good = True
        finally:
            # Here we may be between two entries, and it must not take that for the end.
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


def _failure(packer: Packer, status: int, said: str, out: str) -> ChError:
    if _DISK_FULL.search(said) or _WRITE_ERROR.search(said):
        return disk_full(os.path.dirname(out))
    if status < 0:
        return ChError(children.killed(packer.name, status))
    line = "; ".join(said.splitlines()[-3:])
    return ChError(f"{packer.name} failed with status {status}: {line or 'it gives no reason'}")


def disk_full(directory: str) -> DiskFull:
    """Return the error for a file system, or a quota, that is used up."""
    return DiskFull(
        f"{directory}: no room for the image (disk or quota full): `slurm-ch prune` removes cached images, "
        f"{CACHE_VARIABLE}=DIR puts them elsewhere"
    )


def write_error(error: OSError, path: str) -> ChError:
    """Return the error for a file that could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(os.path.dirname(os.path.abspath(path)))
    return ChError(f"can't write {path}")


def check(path: str, inodes: int | None = None) -> int:
    """Return a SquashFS file's size; ChError if it isn't whole, or has not that many inodes."""
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
