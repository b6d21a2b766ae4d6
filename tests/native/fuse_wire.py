# SPDX-License-Identifier: Apache-2.0
"""Requests to the SquashFS server as the kernel sends them, but over a socket pair: without a mount or the kernel's cache."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

from slurm_ch import paths

SERVER = Path(paths.NATIVE) / "ch-squashfuse_ll"
ROOT = 1
LOOKUP, GETATTR, READLINK, READ, STATFS, GETXATTR, LISTXATTR, INIT, READDIR, READDIRPLUS = (
    1, 3, 5, 15, 17, 22, 23, 26, 28, 44,
)  # fmt: skip
INIT_EXT, REQUEST_TIMEOUT = 1 << 30, 1 << (42 - 32)
SECONDS = 20


class Gone(Exception):
    """The server has ended."""


class Server:
    """A server of `image`, and requests to it; each raises OSError as the reply says, or Gone."""

    def __init__(self, image: Path, *words: str, before: tuple[str, ...] = (), pass_fds: tuple[int, ...] = ()) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(SECONDS)
        self.unique = 0
        with open(image, "rb") as file, theirs:
            fds = (file.fileno(), theirs.fileno())
            command = [*before, str(SERVER), "-f", *words, *(f"/dev/fd/{fd}" for fd in fds)]
            self.process = subprocess.Popen(
                command, pass_fds=(*fds, *pass_fds), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE, env={},
            )  # fmt: skip

    def end(self) -> tuple[int, str]:
        """End the mount; return the server's status and standard error."""
        self.socket.close()
        _, said = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, said.decode()

    def ask(self, operation: int, node: int = ROOT, body: bytes = b"") -> bytes:
        self.unique += 1
        head = struct.pack("=IIQQIIII", 40 + len(body), operation, self.unique, node, 0, 0, 0, 0)
        try:
            self.socket.send(head + body)
            reply = self.socket.recv(1 << 18)
        except ConnectionError as error:
            raise Gone from error
        if not reply:
            raise Gone
        length, error, unique = struct.unpack_from("=IiQ", reply)
        assert (length, unique) == (len(reply), self.unique) and -200 < error <= 0, (reply[:16], len(reply))
        if error:
            raise OSError(-error, os.strerror(-error))
        return reply[16:]

    def init(self, flags: int = 0, flags2: int = 0) -> bytes:
        return self.ask(INIT, 0, struct.pack("=IIIII44x", 7, 45, 131072, flags, flags2))

    def lookup(self, name: bytes, parent: int = ROOT) -> int:
        """Return the node of a name; 0 if there is none."""
        node: int = struct.unpack_from("=Q", self.ask(LOOKUP, parent, name + b"\0"))[0]
        return node

    def names(self, node: int = ROOT, size: int = 32768, plus: bool = False) -> list[bytes]:
        found: list[bytes] = []
        offset = 0
        while reply := self.ask(READDIRPLUS if plus else READDIR, node, struct.pack("=QQI20x", 0, offset, size)):
            assert len(reply) <= size
            while reply:
                start = 128 if plus else 0
                _, offset, length, _ = struct.unpack_from("=QQII", reply, start)
                assert length <= 256 and len(reply) >= start + 24 + length
                found.append(reply[start + 24 : start + 24 + length])
                reply = reply[-(-(start + 24 + length) // 8) * 8 :]
        return found

    def getxattr(self, node: int, name: bytes, size: int = 65536) -> bytes:
        return self.ask(GETXATTR, node, struct.pack("=II", size, 0) + name + b"\0")

    def listxattr(self, node: int, size: int = 65536) -> list[bytes]:
        return self.ask(LISTXATTR, node, struct.pack("=II", size, 0)).split(b"\0")[:-1]

    def read(self, node: int, offset: int = 0, size: int = 131072) -> bytes:
        return self.ask(READ, node, struct.pack("=QQI20x", 0, offset, size))

    def explore(self, room: int = 60) -> int:
        """Send every request about every file, up to `room` entries; return how many were answered by EIO."""
        refused = 0
        left, nodes = room, [ROOT]
        while nodes and left:
            node, left = nodes.pop(), left - 1
            names: list[bytes] = []
            for question in (
                partial(self.ask, GETATTR, node, bytes(16)),
                partial(self.ask, READLINK, node),
                partial(self.read, node),
                partial(self.read, node, 130000, 4096),
                partial(self.listxattr, node),
                partial(self.getxattr, node, b"security.capability"),
                partial(self.add_names, names, node, 32768),
                partial(self.add_names, names, node, 4096, plus=True),
            ):
                refused += self._refused(question)
            found: list[int] = []
            for name in {name.split(b"\0")[0] for name in names[:room]} - {b".", b"..", b""}:
                refused += self._refused(partial(self.add_node, found, name, node))
            nodes += found
        return refused

    def add_names(self, to: list[bytes], node: int, size: int, plus: bool = False) -> None:
        to += self.names(node, size, plus)

    def add_node(self, to: list[int], name: bytes, parent: int) -> None:
        to += [node for node in [self.lookup(name, parent)] if node]

    def _refused(self, question: Callable[[], object]) -> bool:
        try:
            question()
        except OSError as error:
            assert error.errno in (errno.EIO, errno.EINVAL, errno.ENOTDIR, errno.ENODATA, errno.ENOSYS), error
            return error.errno == errno.EIO
        return False
