# SPDX-License-Identifier: Apache-2.0
"""Messages to the broker that no relay of ours sends."""

from __future__ import annotations

import fcntl
import os
import random
import select
import struct

from . import relay as stage
from .relay import Relay

REQUEST = struct.Struct("=8sQQQIIII" + "QQ" * 16)
EXITED, KILLED, STOPPED, FAILED, REFUSED = range(1, 6)


def sealed(data: bytes, seals: int = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE) -> int:
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def head(size: int, arguments: int = 0, variables: int = 0, streams: int = 0, magic: bytes = b"chrelay1") -> bytes:
    return REQUEST.pack(magic, 0, 0, size, arguments, variables, 0o22, streams, *[2**64 - 1] * 32)


def request(name: str = "squeue") -> tuple[bytes, list[int]]:
    text = f"{name}\0/\0".encode()
    return head(len(text)), [sealed(text)]


def answer(relay: Relay, data: bytes, fds: list[int]) -> tuple[int, int] | None:
    """Send a message and return the first answer, None for a hang-up; closes the descriptors."""
    with relay.call() as sock:
        sock.sendmsg(*stage.message(data, fds))
        for fd in set(fds):
            os.close(fd)
        assert select.select([sock], [], [], 30)[0]
        got = sock.recv(100)
        if not got:
            return None
        kind, value = struct.unpack("=II", got)
        return kind, value


def test_malformed_requests(relay: Relay) -> None:
    text = b"squeue\0/\0a\0V=1\0"
    size = len(text)
    reader, writer = os.pipe()
    bad, big = 74, 7  # EBADMSG, E2BIG
    cases: list[tuple[bytes, list[int], int]] = [
        (b"x", [], bad),
        (b"x" * 4096, [], bad),
        (head(size, 1, 1)[:-1], [sealed(text)], bad),
        (head(size, 1, 1) + b"x", [sealed(text)], bad),
        (head(size, 1, 1), [], bad),
        (head(size, 1, 1, magic=b"chrelay2"), [sealed(text)], bad),
        (head(size, 1, 1, streams=1), [sealed(text)], bad),
        (head(size, 1, 1, streams=0), [sealed(text), os.dup(reader)], bad),
        (head(size, 1, 1, streams=8), [sealed(text), os.dup(reader)], bad),
        (head(size, 1, 1, streams=2**32 - 1), [sealed(text), *[os.dup(reader) for _ in range(3)]], bad),
        (head(size, 1, 1), [sealed(text, 0)], bad),
        (head(size, 1, 1), [sealed(text, fcntl.F_SEAL_WRITE)], bad),
        (head(size, 1, 1), [os.dup(reader)], bad),
        (head(size, 1, 1), [os.open("/etc/passwd", os.O_RDONLY)], bad),
        (head(size, 1, 1), [os.open("/", os.O_RDONLY)], bad),
        (head(size + 1, 1, 1), [sealed(text)], bad),
        (head(size - 1, 1, 1), [sealed(text)], bad),
        (head(0), [sealed(b"")], bad),
        (head(1), [sealed(b"\0")], bad),
        (head(size - 1, 1, 1), [sealed(text[:-1])], bad),
        (head(size, 1, 0), [sealed(text)], bad),
        (head(size, 1, 2), [sealed(text)], bad),
        (head(size, 0, 1), [sealed(text)], bad),
        (head(size, 2**32 - 1, 1), [sealed(text)], big),
        (head(size, 1, 2**32 - 1), [sealed(text)], big),
        (head(size, 2**20, 2**20), [sealed(text)], bad),
        (head(9 << 20, 1, 1), [sealed(b"\0" * (9 << 20))], big),
        (head(2**64 - 1, 1, 1), [sealed(text)], bad),
    ]
    for number, (data, fds, expected) in enumerate(cases):
        assert answer(relay, data, fds) == (REFUSED, expected), number
    # More descriptors than there is room for: none of them may stay.
    assert answer(relay, head(size, 1, 1), [sealed(text), *[os.dup(reader) for _ in range(40)]]) in (
        (REFUSED, bad),
        (REFUSED, 24),
    )
    os.close(reader)
    os.close(writer)
    assert relay.run("squeue").returncode == 0
    relay.wait_until_idle()


def test_random_requests(relay: Relay) -> None:
    """Seed 0: a good request with a few bytes changed, 250 times."""
    dice = random.Random(0)
    stage.write_script(relay.room.parent / "host" / "squeue", "#!/bin/sh\n")
    text = b"squeue\0/\0-h\0A=1\0B=2\0"
    good = head(len(text), 1, 2)
    for _ in range(250):
        data, strings = bytearray(good), bytearray(text)
        for _ in range(dice.randint(1, 4)):
            target = data if dice.random() < 0.5 else strings
            # Not the limits: a command that can't have memory is none of ours to report.
            target[dice.randrange(min(len(target), 48))] = dice.choice([0, 1, 255, dice.randrange(256)])
        found = answer(relay, bytes(data), [sealed(bytes(strings))])
        assert found is None or found[0] in (EXITED, KILLED, FAILED, REFUSED)
    assert relay.run("squeue").returncode == 0
    assert relay.errors.read_text() == ""


def test_random_signals_and_silence(relay: Relay) -> None:
    silent = [relay.call() for _ in range(20)]
    for data in (
        b"",
        b"x",
        struct.pack("=II", 0, 0),
        struct.pack("=II", 10**6, 1),
        b"y" * 100,
        struct.pack("=II", 18, 0),
    ):
        process, command = None, -1
        sock = relay.call()
        text = b"sleeper\0/\0"
        reader, writer = os.pipe()
        fds = [sealed(text), writer]
        sock.sendmsg(*stage.message(head(len(text), streams=2), fds))
        for fd in fds:
            os.close(fd)
        with open(reader) as out:
            command = os.pidfd_open(int(out.readline()))
        if data:
            sock.send(data)
        sock.close()
        assert stage.gone(command), process
        os.close(command)
    assert relay.run("squeue").returncode == 0
    for sock in silent:
        sock.close()
    relay.wait_until_idle()
