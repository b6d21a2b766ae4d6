# SPDX-License-Identifier: Apache-2.0
"""Read a layer as a stream of inflated bytes: gzip, bzip2, xz, zstd or uncompressed."""

from __future__ import annotations

import bz2
import hashlib
import lzma
import os
import shutil
import subprocess
import zlib
from typing import TYPE_CHECKING, Any

from ..errors import ChError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


# Bytes to read and to inflate at a time; so a decompression bomb can't use more memory. They are below malloc's
# threshold of 128 KiB, above which each buffer would be mapped, cleared by the kernel, and moved as it grows.
_COMPRESSED = 1 << 14
_INFLATED = 1 << 16


class LayerError(ChError):
    """A layer is invalid."""


class Stream:
    """A layer's inflated bytes, which can be read only forwards. `position` counts them.

    `what`: the layer's name for messages. `limit`: the largest number of inflated bytes. `digest`: "sha256:HEX", which
    `finish` compares with the compressed bytes. `tick` is called often. LayerError if the file can't be read.
    """

    def __init__(
        self,
        path: str,
        what: str,
        limit: int,
        digest: str | None = None,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self._tick = tick
        self.what = what
        self.position = 0
        self._limit = limit
        self._digest = digest
        self._hash = hashlib.sha256() if digest is not None else None
        self._buffer = b""
        self._at = 0
        self._child: subprocess.Popen[bytes] | None = None
        try:
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115  closed by close()
        except OSError as error:
            raise LayerError(f"{what}: can't open {path}") from error
        try:
            first = self._raw()
            self._inflate = self._inflater(first, path)
            self._pending = first
            self._ended = False
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file, and end the program that inflates it."""
        self._file.close()
        if self._child is not None:
            for pipe in (self._child.stdout, self._child.stderr):
                assert pipe is not None
                pipe.close()
            self._child.kill()
            self._child.wait()
            self._child = None

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _raw(self) -> bytes:
        try:
            data = self._file.read(_COMPRESSED)
        except OSError as error:
            raise LayerError(f"{self.what}: can't be read") from error
        if self._hash is not None:
            self._hash.update(data)
        return data

    def _inflater(self, first: bytes, path: str) -> Callable[[], bytes]:
        """Return a function that returns the next inflated bytes, and b"" at the end."""
        if first[:2] == b"\x1f\x8b":
            return _Members(self, _gzip_decompressor()).next
        if first[:3] == b"BZh":
            return _Members(self, bz2.BZ2Decompressor).next
        if first[:6] == b"\xfd7zXZ\0":
            return _Members(self, lambda: lzma.LZMADecompressor(memlimit=256 << 20)).next
        if first[:4] == b"\x28\xb5\x2f\xfd" or (first[1:4] == b"\x2a\x4d\x18" and 0x50 <= first[0] <= 0x5F):
            return self._zstd(path)
        return self._plain

    def _plain(self) -> bytes:
        data, self._pending = self._pending, b""
        return data or self._raw()

    def _zstd(self, path: str) -> Callable[[], bytes]:
        """Return such a function for zstd: by a module, or by the program zstd, which reads the file itself."""
        try:
            import zstandard
        except ImportError:
            pass
        else:
            return _Zstandard(self, zstandard).next
        try:
            from compression import zstd  # type: ignore[import-not-found,unused-ignore]  # Python 3.14
        except ImportError:
            pass
        else:
            return _Members(self, zstd.ZstdDecompressor).next
        program = shutil.which("zstd")
        if program is None:
            raise ChError(f"{self.what}: a zstd layer: install zstd, or Python's zstandard")
        with open(path, "rb") as file:
            self._child = subprocess.Popen(
                [program, "-dcq"], stdin=file, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        return self._from_child

    def _from_child(self) -> bytes:
        assert self._child is not None and self._child.stdout is not None and self._child.stderr is not None
        data: bytes = os.read(self._child.stdout.fileno(), _INFLATED)
        if not data:
            words = self._child.stderr.read(4096).decode("utf-8", "replace").strip()
            if self._child.wait():
                raise LayerError(f"{self.what}: damaged: {words}")
            # The program has read the file by itself; here it is read for the digest.
            while self._hash is not None and self._raw():
                pass
        return data

    def take_raw(self) -> bytes:
        """Return the next compressed bytes, for an inflater."""
        data, self._pending = self._pending, b""
        return data or self._raw()

    def _fill(self) -> bool:
        """Fill the empty buffer; return False at the end of the layer."""
        if self._ended:
            return False
        self._tick()
        try:
            self._buffer = self._inflate()
        except ChError:
            raise
        except Exception as error:
            # Each compression module has its own exceptions.
            raise LayerError(f"{self.what}: damaged: {error}") from None
        self._at = 0
        if not self._buffer:
            self._ended = True
            return False
        return True

    def read(self, size: int) -> bytes:
        """Return `size` bytes, or fewer at the end of the layer."""
        end = self._at + size
        if end <= len(self._buffer):
            data = self._buffer[self._at : end]
            self._at = end
            self.position += size
            return data
        parts = []
        for piece in self.pieces(size, short=True):
            parts.append(bytes(piece))
        return b"".join(parts)

    def pieces(self, size: int, short: bool = False) -> Iterator[memoryview]:
        """Yield the next `size` bytes in pieces; LayerError if the layer ends before, unless `short`."""
        while size:
            have = len(self._buffer) - self._at
            if not have:
                if not self._fill():
                    if short:
                        return
                    raise LayerError(f"{self.what}: truncated")
                continue
            take = min(have, size)
            piece = memoryview(self._buffer)[self._at : self._at + take]
            self._at += take
            self.position += take
            size -= take
            if self.position > self._limit:
                raise LayerError(f"{self.what}: unpacked, it is larger than the limit of {self._limit >> 30} GiB")
            yield piece

    def skip(self, size: int) -> None:
        """Skip `size` bytes; LayerError if the layer ends before."""
        have = len(self._buffer) - self._at
        if size <= have:
            self._at += size
            self.position += size
            return
        for _ in self.pieces(size):
            pass

    def finish(self) -> None:
        """Read to the end, and compare the digest; LayerError if it differs."""
        for _ in self.pieces(1 << 62, short=True):
            pass
        if self._hash is not None:
            while self._raw():
                pass  # bytes after the last member
            found = "sha256:" + self._hash.hexdigest()
            if found != self._digest:
                raise LayerError(f"{self.what}: its digest is {found}, not {self._digest}: damaged or changed")


def _gzip_decompressor() -> Callable[[], Any]:
    """Return a function that creates a gzip decompressor: isal's if it is installed, as it takes half the time."""
    try:
        from isal import isal_zlib
    except ImportError:
        return lambda: zlib.decompressobj(31)
    return lambda: isal_zlib.decompressobj(31)


class _Members:
    """Inflates all members of a compressed file: pigz, stargz and zstd:chunked write many."""

    def __init__(self, stream: Stream, make: Callable[[], Any]) -> None:
        self._stream = stream
        self._make = make
        self._one: Any = None  # None between members
        self._rest = b""

    def next(self) -> bytes:
        while True:
            if self._one is None:
                data = self._rest or self._stream.take_raw()
                if not data:
                    return b""
                # The file may be padded with zeros, as on a tape.
                self._rest = data.lstrip(b"\0")
                if not self._rest:
                    continue
                self._one = self._make()
            one, data = self._one, self._rest
            if not data and getattr(one, "needs_input", True):
                data = self._stream.take_raw()
            found: bytes = one.decompress(data, _INFLATED)
            self._rest = getattr(one, "unconsumed_tail", b"")
            if one.eof:
                self._one, self._rest = None, one.unused_data
            elif not data and not found:
                raise EOFError("truncated")
            if found:
                return found


class _Zstandard:
    """Inflates all frames by the module zstandard. It doesn't notice a truncated frame, but the digest shows it."""

    def __init__(self, stream: Stream, zstandard: Any) -> None:
        self._take = stream.take_raw
        decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 27)
        self._reader = decompressor.stream_reader(self, read_across_frames=True)

    def read(self, _size: int) -> bytes:
        return self._take()

    def next(self) -> bytes:
        data: bytes = self._reader.read(_INFLATED)
        return data
