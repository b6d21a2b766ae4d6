# SPDX-License-Identifier: Apache-2.0
"""Sources for packing that can be read only inside a container: by a child that enters it, or by a step of a job."""

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

# On standard output, this precedes the archive: other output before it is ignored.
MARK = b"\0slurm_ch archive\0"
# On standard error, this line follows the archive, with its number of inodes.
COUNT = "slurm_ch inodes "
_CHUNK = 1 << 18


class FromChild:
    """The tree that `read` returns. It is called in a child process, which may enter a container."""

    def __init__(self, read: Callable[[], merge.Tree]) -> None:
        self._read = read
        self.inodes = 0
        self.bytes = 0
        self.written = 0

    def write(self, fd: int, tick: Callable[[int], None]) -> None:
        """Write the archive to `fd` in a child; ChError with the child's message if it fails.

        `tick` gets the number of bytes written. Raises BrokenPipeError if nobody reads `fd` any more.
        """
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            self._in_child(fd, writer)
            os._exit(0)
        os.close(writer)
        state: dict[str, object] = {}
        try:
            with open(reader, "rb") as lines:
                for line in lines:
                    state.update(json.loads(line))
                    self.bytes = state.get("bytes", 0)  # type: ignore[assignment]
                    self.written = state.get("written", 0)  # type: ignore[assignment]
                    tick(self.written)
        finally:
            os.waitpid(child, 0)
        if state.get("broken"):
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        inodes = state.get("inodes")
        if not isinstance(inodes, int):
            raise ChError(str(state.get("error", "the process that reads the image was killed")))
        self.inodes = inodes

    def _in_child(self, fd: int, writer: int) -> None:
        """Write the archive to `fd`, and the progress and result to `writer`, as lines of JSON."""

        def report(**state: object) -> None:
            os.write(writer, json.dumps(state).encode() + b"\n")

        try:
            flat = Flat(self._read())
            report(bytes=flat.bytes)
            flat.write(fd, lambda written: report(written=written))
            report(inodes=flat.inodes)
        except BrokenPipeError:
            report(broken=True)
        except Exception as error:
            report(error=describe(error))


class FromProgram:
    """The archive that a program writes to standard output after MARK; it writes COUNT to standard error at the end."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        self._argv = argv
        self._env = env
        self.inodes = 0
        self.bytes = 0
        self.written = 0

    def write(self, fd: int, tick: Callable[[int], None]) -> None:
        """Copy the archive to `fd`; ChError with the program's message if it fails."""
        with children.memory_file() as messages:
            program = children.start(self._argv, self._env, stdout=subprocess.PIPE, stderr=messages)
            assert program.stdout is not None
            try:
                with program.stdout:
                    self._pass_on(program.stdout.fileno(), fd, tick)
                status = program.wait()
            finally:
                children.stop(program)
            lines = children.last_words(messages).splitlines()
        counts = [line[len(COUNT) :] for line in lines if line.startswith(COUNT)]
        if status or not counts or not counts[-1].isdigit():
            errors = [line for line in lines if "error: " in line and not line.startswith("srun: error: ")] or lines
            reason = errors[0].rpartition("error: ")[2] if errors else "it gives no reason"
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
