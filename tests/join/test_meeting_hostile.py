# SPDX-License-Identifier: Apache-2.0
"""A join and hostile processes [J6]: a name that is taken, floods, false messages, containers that pose as holders."""

from __future__ import annotations

import array
import os
import random
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from .conftest import Place, wait_for
from .test_join import Child

OTHER = 65534
MAGIC = b"chmeet1\0"
HELLO = struct.Struct("=8sQQqI32s204s")
ANSWER = struct.Struct("=8sIIi32s")
BEGIN, HAVE, TAKE, COUNT, TAG, LOST, OTHERS = range(1, 8)


@contextmanager
def as_user(uid: int) -> Iterator[None]:
    """Act on sockets as that user, whom the kernel records."""
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.mark.row("J6", "E1")
def test_a_squatter_who_listens(place: Place) -> None:
    with as_user(OTHER):
        squatter = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        squatter.bind(place.name.encode())
        squatter.listen()
    with squatter:
        code, out, err = place.start(count=1).end()
        assert (code, out) == (32, "")
        assert (
            err
            == f"slurm-ch: error: join: {place.tag}: its name belongs to uid {OTHER} (pid {os.getpid()}); refusing to use it\n"
        )
    assert place.start(count=1).end() == (0, "one\n", "")


@pytest.mark.row("J6", "E1")
def test_a_squatter_who_only_binds(place: Place) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as squatter:
        squatter.bind(place.name.encode())
        code, out, err = place.start("--join-timeout=1", count=1).end()
        assert (code, out) == (32, "")
        assert err == f"slurm-ch: error: join: {place.tag}: its name is taken by a process that doesn't listen\n"
    assert place.start(count=1).end() == (0, "one\n", "")


@pytest.mark.row("E2")
def test_code_in_a_container_can_t_pose_as_a_holder(place: Place) -> None:
    """A process of the same user, in its own user namespace."""
    script = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.bind(sys.argv[1].encode());"
        "s.listen(); print('ready', flush=True); sys.stdin.read()"
    )
    name = place.name.replace("\0", "")
    poser = place.execute(
        [
            "unshare",
            "--user",
            "/usr/bin/python3",
            "-c",
            script.replace("sys.argv[1].encode()", "b'\\0' + sys.argv[1].encode()"),
            name,
        ],
        env={"PATH": "/usr/bin:/bin"},
    )
    assert poser.line() == "ready"
    code, out, err = place.start(count=1).end()
    assert (code, out) == (32, "")
    assert (
        err
        == f"slurm-ch: error: join: {place.tag}: its name belongs to pid {poser.pid}, in a container; refusing to use it\n"
    )
    poser.kill()


@pytest.mark.row("E2")
def test_code_in_a_container_is_no_peer(place: Place) -> None:
    """It is refused: it gets no part of a container, and no peer takes a container from it."""
    assert place.start(count=2).end()[0] == 0
    place.wait_for_holder()
    script = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET);"
        "s.connect(b'\\0' + sys.argv[1].encode()); s.send(bytes.fromhex(sys.argv[2])); print(len(s.recv(99)))"
    )
    words = [place.name.replace("\0", ""), hello(place).hex()]
    caller = place.execute(
        ["unshare", "--user", "/usr/bin/python3", "-c", script, *words], env={"PATH": "/usr/bin:/bin"}
    )
    code, out, err = caller.end()
    assert out == "0\n" or "ConnectionReset" in err or "BrokenPipe" in err, (code, out, err)
    assert place.start(count=2).end() == (0, "one\n", "")


def hello(place: Place, **other: object) -> bytes:
    fields = {
        "magic": MAGIC,
        "image": 1,
        "rules": 1,
        "rank": -1,
        "peers": 2,
        "name": b"liar",
        "tag": place.tag.encode(),
        **other,
    }
    return HELLO.pack(*(fields[name] for name in ("magic", "image", "rules", "rank", "peers", "name", "tag")))


@contextmanager
def call(place: Place) -> Iterator[socket.socket]:
    """A connection to the holder."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as one:
        one.settimeout(5)
        one.connect(place.name.encode())
        yield one


def lie(place: Place, body: Callable[[], None]) -> None:
    """Do something as the user, in a process whose namespace the holder can see."""
    liar = Child(place.uid, lambda _: body())
    assert liar.end() == 0
    os.close(liar.reports)
    os.close(liar.gate)


def answer(one: socket.socket) -> int:
    """Return the kind of the answer, or 0 if there is none."""
    try:
        data = one.recv(200)
    except ConnectionResetError:
        return 0
    return ANSWER.unpack(data)[1] if len(data) == ANSWER.size else 0


@pytest.fixture
def holder(place: Place) -> Place:
    """A place whose holder waits for one of two peers."""
    assert place.start(count=2).end() == (0, "one\n", "")
    place.wait_for_holder()
    return place


@pytest.mark.row("E4")
def test_hellos_that_lie(holder: Place) -> None:
    good = hello(holder)
    cases = [
        (good[:-1], OTHERS), (good + b"x", OTHERS), (b"x", OTHERS), (b"x" * len(good), OTHERS), (good * 50, OTHERS),
        (hello(holder, magic=b"chmeet0\0"), OTHERS), (hello(holder, peers=0), OTHERS), (hello(holder, peers=1 << 20), OTHERS),
        (hello(holder, rank=-2), OTHERS), (hello(holder, tag=b"y" * 204), OTHERS), (hello(holder, tag=b"another"), TAG),
    ]  # fmt: skip
    dice = random.Random(5)
    cases += [(dice.randbytes(dice.randrange(1, 400)), OTHERS) for _ in range(100)]

    def body() -> None:
        for data, kind in cases:
            with call(holder) as one:
                one.send(data)
                assert answer(one) == kind, data

    lie(holder, body)
    assert holder.start(count=2).end() == (0, "one\n", "")


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        (ANSWER.pack(MAGIC, COUNT, 7, 0, b""), 64, "--join-ct=2: other peers of {} say 7"),
        (ANSWER.pack(MAGIC, TAG, 0, 0, b""), 32, "join: {}: its name is another join's, whose tag has the same hash"),
        (ANSWER.pack(MAGIC, LOST, 0, 0, b""), 32, "join: {}: the container's holder was killed before this peer came"),
        (ANSWER.pack(MAGIC, OTHERS, 0, 0, b""), 32, "join: {}: the peers are of different versions of slurm_ch"),
        (ANSWER.pack(MAGIC, 99, 0, 0, b""), 32, "join: {}: the peers are of different versions of slurm_ch"),
        (ANSWER.pack(b"chmeet0\0", BEGIN, 0, 0, b""), 32, "join: {}: the peers are of different versions of slurm_ch"),
        (b"x", 32, "join: {}: the peers are of different versions of slurm_ch"),
        (b"x" * 9999, 32, "join: {}: the peers are of different versions of slurm_ch"),
        (ANSWER.pack(MAGIC, TAKE, 1, 0, b"n" * 32), 31, "can't receive the ticket: out of file descriptors"),
    ],
    ids=["count", "tag", "lost", "others", "unknown", "magic", "short", "long", "take-nothing"],
)
@pytest.mark.row("E4")
def test_answers(place: Place, answer: bytes, code: int, said: str) -> None:
    """Answers of a process that the peer takes for the holder."""

    def body() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(place.name.encode())
            listener.listen()
            one, _ = listener.accept()
            with one:
                assert len(one.recv(1000)) == HELLO.size
                one.send(answer)
                one.recv(1)

    holder = Child(place.uid, lambda _: body())
    wait_for(place.is_bound, lambda: "nobody has bound the name")
    assert place.start(count=2).end() == (code, "", f"slurm-ch: error: {said.format(place.tag)}\n")
    assert holder.end() == 0
    os.close(holder.reports)
    os.close(holder.gate)


@pytest.mark.parametrize("count", [1, 2, 253])
@pytest.mark.row("E4")
def test_descriptors_with_a_hello(holder: Place, count: int) -> None:
    """Unexpected descriptors are closed."""
    pid = holder.holders()["holder"]
    before = len(os.listdir(f"/proc/{pid}/fd"))
    null = os.open("/dev/null", os.O_RDONLY)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null] * count))]

    def body() -> None:
        for data in (b"x", hello(holder, tag=b"another")):
            with call(holder) as one:
                one.sendmsg([data], rights)
                assert answer(one) in (OTHERS, TAG)

    lie(holder, body)
    os.close(null)
    wait_for(lambda: len(os.listdir(f"/proc/{pid}/fd")) == before, lambda: "descriptors stay")
    assert holder.start(count=2).end() == (0, "one\n", "")


@pytest.mark.row("E4")
def test_a_second_message(holder: Place) -> None:
    """Only the peer that was told to begin may hand over, and only once."""
    reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    have = ANSWER.pack(MAGIC, HAVE, 0, 0, b"")
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [reader.fileno()]))]

    def body() -> None:
        with call(holder) as one:  # no hello
            one.sendmsg([have], rights)
            assert answer(one) == OTHERS
        with call(holder) as one, call(holder) as two:  # of an image of their own
            one.send(hello(holder, image=77, peers=3))
            assert answer(one) == BEGIN
            two.send(hello(holder, image=77, peers=3))
            two.sendmsg([have], rights)
            assert answer(two) == OTHERS
            one.send(have)  # without what it says to have
            assert answer(one) == OTHERS

    with reader, writer:
        lie(holder, body)
    assert holder.start(count=2).end() == (0, "one\n", "")


@pytest.mark.row("E3")
def test_a_flood_of_foreign_connects(holder: Place) -> None:
    """Their connections are dropped, and the late peer joins."""
    script = (
        "import os, socket, sys; os.setgid(65534); os.setuid(65534)\n"
        "while True:\n"
        "    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "    try: s.connect(b'\\0' + sys.argv[1].encode())\n"
        "    except OSError: pass\n"
        "    s.close()\n"
    )
    floods = [subprocess.Popen(["/usr/bin/python3", "-c", script, holder.name.replace("\0", "")]) for _ in range(2)]
    try:
        assert holder.start(count=2).end() == (0, "one\n", "")
    finally:
        for flood in floods:
            flood.kill()
            flood.wait()


@pytest.mark.row("E3")
def test_callers_who_say_nothing(holder: Place) -> None:
    """Only the user could open more connections than the holder has descriptors for; fewer don't matter."""
    silent = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(50)]
    with as_user(holder.uid):
        for one in silent:
            one.connect(holder.name.encode())
    assert holder.start(count=2).end() == (0, "one\n", "")
    for one in silent:
        one.close()
