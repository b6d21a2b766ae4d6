# SPDX-License-Identifier: Apache-2.0
"""A tree that can be read only from within a container: by a child that goes there, or by a step of a job."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from typing import TYPE_CHECKING

from ..errors import ChError, describe
from . import children, merge
from .flat import Flat

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

# Before the archive: what else comes by the same way isn't part of it.
MARK = b"\0slurm_ch archive\0"
# On standard error, behind the archive: how many inodes it has.
COUNT = "slurm_ch inodes "
_CHUNK = 1 << 18


class FromChild:
    """What `read` returns in a child of ours, which may go where there is no way back from."""

    def __init__(self, read: Callable[[], merge.Tree]) -> None:
        self._read = read
        self.inodes = 0
        self.bytes = 0
        self.written = 0

    def write(self, fd: int, tick: Callable[[int], None]) -> None:
        """Have the child write the archive to `fd`; ChError with its words if it can't."""
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            self._in_child(fd, writer)
            os._exit(0)
        os.close(writer)
        said: dict[str, object] = {}
        try:
            with open(reader, "rb") as lines:
                for line in lines:
                    said.update(json.loads(line))
                    self.bytes, self.written = said.get("bytes", 0), said.get("written", 0)  # type: ignore[assignment]
                    tick(self.written)
        finally:
            os.waitpid(child, 0)
        if said.get("broken"):
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        inodes = said.get("inodes")
        if not isinstance(inodes, int):
            raise ChError(str(said.get("error", "what reads the image was killed")))
        self.inodes = inodes

    def _in_child(self, fd: int, writer: int) -> None:
        """Write the archive to `fd`, and a line to `writer` for each thing that the parent is to know."""

        def tell(**what: object) -> None:
            os.write(writer, json.dumps(what).encode() + b"\n")

        try:
            flat = Flat(self._read())
            tell(bytes=flat.bytes)
            flat.write(fd, lambda written: tell(written=written))
            tell(inodes=flat.inodes)
        except BrokenPipeError:
            tell(broken=True)
        except Exception as error:
            tell(error=describe(error))


class FromProgram:
    """What a program writes to its standard output behind MARK; it ends with COUNT on standard error."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        self._argv = argv
        self._env = env
        self.inodes = 0
        self.bytes = 0
        self.written = 0

    def write(self, fd: int, tick: Callable[[int], None]) -> None:
        """Pass the archive on to `fd`; ChError with the program's words if it fails."""
        with children.words_file() as said:
            program = children.start(self._argv, self._env, stdout=subprocess.PIPE, stderr=said)
            assert program.stdout is not None
            try:
                with program.stdout:
                    self._pass_on(program.stdout.fileno(), fd, tick)
                status = program.wait()
            finally:
                children.stop(program)
            words = children.words(said).splitlines()
        counts = [line[len(COUNT) :] for line in words if line.startswith(COUNT)]
        if status or not counts or not counts[-1].isdigit():
            errors = [line for line in words if "error: " in line and not line.startswith("srun: error: ")] or words
            reason = errors[0].rpartition("error: ")[2] if errors else "no word of what went wrong"
            raise ChError(reason)
        self.inodes = int(counts[-1])

    def _pass_on(self, source: int, fd: int, tick: Callable[[int], None]) -> None:
        before: bytes | None = b""
        while data := os.read(source, _CHUNK):
            if before is not None:
                before += data
                _, found, data = before.partition(MARK)
                if not found:
                    before = before[-_CHUNK:]
                    continue
                before = None
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            self.written += len(data)
            tick(self.written)
