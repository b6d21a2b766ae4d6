# SPDX-License-Identifier: Apache-2.0
"""A tree that can be read only from within a container: by a child that goes there, or by a step of a job."""

from __future__ import annotations

import errno
import json
import os
import select
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
_TICK_SECONDS = 0.2
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
            os.write(writer, json.dumps(self._in_child(fd)).encode())
            os._exit(0)
        os.close(writer)
        said = b""
        try:
            while True:
                if not select.select([reader], [], [], _TICK_SECONDS)[0]:
                    tick(0)
                    continue
                more = os.read(reader, 4096)
                if not more:
                    break
                said += more
        finally:
            os.close(reader)
            os.waitpid(child, 0)
        answer = json.loads(said or b'{"error": "what reads the image was killed"}')
        if answer.get("broken"):
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        if "error" in answer:
            raise ChError(answer["error"])
        self.inodes = answer["inodes"]

    def _in_child(self, fd: int) -> dict[str, object]:
        try:
            flat = Flat(self._read())
            flat.write(fd)
        except BrokenPipeError:
            return {"broken": True}
        except Exception as error:
            return {"error": describe(error)}
        return {"inodes": flat.inodes}


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
