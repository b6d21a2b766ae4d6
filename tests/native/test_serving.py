# SPDX-License-Identifier: Apache-2.0
"""The SquashFS server and hostile images, with requests over a socket pair in place of the kernel's."""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .fuse_wire import INIT_EXT, LOOKUP, READ, READDIR, READDIRPLUS, READLINK, REQUEST_TIMEOUT, Gone, Server

SEED = int(os.environ.get("SEED", "1"))
FULL = os.environ.get("CHAOS") == "full"
LONG = b"trusted." + b"n" * 200


def pack(tree: Path, image: Path, *words: str) -> Path:
    image.unlink(missing_ok=True)
    command = ["mksquashfs", tree, image, "-quiet", "-no-progress", "-all-time", "0", "-mkfs-time", "0", *words]
    subprocess.run(command, check=True, capture_output=True)
    return image


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Each kind of inode; one directory that is large enough for an index; attributes, one with a long name."""
    root = tmp_path_factory.mktemp("serving") / "tree"
    (root / "many").mkdir(parents=True)
    dice = random.Random(3)
    (root / "big").write_bytes(dice.randbytes(200_000) + bytes(300_000))
    (root / "small").write_bytes(b"small")
    (root / "soft").symlink_to("small")
    os.mkfifo(root / "fifo")
    (root / "first").mkdir()
    (root / "first" / "victim").touch()
    for number in range(900):
        (root / "many" / f"{number:03}{'n' * 80}").touch()
    os.setxattr(root / "small", LONG, b"value")
    os.setxattr(root / "small", b"trusted.other", b"v" * 3000)
    os.setxattr(root / "many", b"trusted.other", b"v" * 3000)
    yield root
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def plain(tree: Path) -> Path:
    """The tree without compression, so that its bytes can be changed in place."""
    return pack(tree, tree.with_name("plain.sqfs"), "-noI", "-noD", "-noF", "-noX")


@pytest.mark.parametrize("packing", [("-noX",), ("-comp", "zstd")], ids=" ".join)
def test_an_attribute_with_a_long_name(tree: Path, packing: tuple[str, ...]) -> None:
    server = Server(pack(tree, tree.with_name("long.sqfs"), *packing))
    server.init()
    node = server.lookup(b"small")
    for _ in range(100):  # what is overrun is the heap's: it may take a while to show
        with pytest.raises(OSError) as no_such:
            server.getxattr(node, b"security.capability")
        assert no_such.value.errno == errno.ENODATA
    assert server.getxattr(node, LONG) == b"value"
    assert server.getxattr(node, LONG, 0) == struct.pack("=II", 5, 0)
    assert server.getxattr(node, b"trusted.other") == b"v" * 3000
    with pytest.raises(OSError) as no_room:
        server.getxattr(node, b"trusted.other", 2999)
    assert no_room.value.errno == errno.ERANGE
    assert server.listxattr(node) == []  # nobody in a container may read trusted attributes, so nobody sees them
    assert server.listxattr(server.lookup(b"big")) == []
    assert server.end() == (0, "")


def test_an_image_of_nothing(tmp_path: Path) -> None:
    """The root is empty, so the position of its listing is one where there is no listing."""
    (tmp_path / "nothing").mkdir()
    server = Server(pack(tmp_path / "nothing", tmp_path / "image.sqfs", "-no-exports", "-no-xattrs"))
    server.init()
    assert server.names() == [b".", b".."] and not server.lookup(b"x")
    assert server.end() == (0, "")


def long_name(plain: Path, image: Path) -> None:
    """Make `image` from `plain`: an entry claims a name of 64 KiB, and is followed by as many bytes."""
    data = plain.read_bytes()
    # An entry of a directory: offset, inode number (a difference), type, the name's size minus one, the name.
    places = [m.start() for m in re.finditer(rb"\x05\x00victim", data)]
    assert len(places) == 1
    image.write_bytes(data[: places[0]] + b"\xff\xff" + data[places[0] + 2 :])


@pytest.mark.parametrize("how", ["names", "plus", "lookup"])
def test_an_entry_with_a_name_of_64_kib(plain: Path, tmp_path: Path, how: str) -> None:
    long_name(plain, tmp_path / "image.sqfs")
    server = Server(tmp_path / "image.sqfs")
    server.init()
    first = server.lookup(b"first")
    try:
        if how == "lookup":
            assert not server.lookup(b"other", first)
        else:
            server.names(first, plus=how == "plus")
    except OSError as error:
        assert error.errno == errno.EIO
    # It lives, and goes on serving what is undamaged.
    assert len(server.names(server.lookup(b"many"))) == 902
    assert server.end()[0] == 0


def test_an_index_with_a_name_beyond_all_bounds(plain: Path, tmp_path: Path) -> None:
    """The index of a large directory gives the size of a name in 32 bits."""
    data = plain.read_bytes()
    # An entry of an index: an offset, a block, the name's size minus one, the name.
    places = [m.start() for m in re.finditer(rb"\x52\x00\x00\x00\d\d\dn{80}", data)]
    assert places
    for place in places:
        data = data[:place] + b"\xff\xff\xff\x00" + data[place + 4 :]
    (tmp_path / "image.sqfs").write_bytes(data)
    server = Server(tmp_path / "image.sqfs")
    server.init()
    many = server.lookup(b"many")
    # Only time is lost.
    assert server.lookup(b"899" + b"n" * 80, many) and not server.lookup(b"899", many)
    assert len(server.names(many)) == 902
    status, said = server.end()
    assert (status, said.count("\n")) == (0, 1) and f"{tmp_path}/image.sqfs is damaged: a directory's index, at" in said


def test_no_mutated_image_kills_its_server(tree: Path, plain: Path, tmp_path: Path) -> None:
    packed = pack(tree, tree.with_name("packed.sqfs"), "-comp", "gzip")
    dice = random.Random(SEED)
    ends = {"served": 0, "refused": 0, "not taken": 0}
    for number in range(20_000 if FULL else 200):
        data = bytearray((plain, packed)[number % 2].read_bytes())
        # The superblock, the tables at the end, or anywhere.
        low, high = dice.choice(((4, 96), (len(data) - 40_000, len(data)), (0, len(data))))
        for _ in range(dice.choice((1, 1, 4, 30))):
            at = max(0, dice.randrange(low, high))
            data[at] = dice.choice((0, 1, 127, 128, 255, dice.randrange(256)))
        (tmp_path / "image.sqfs").write_bytes(data)
        server = Server(tmp_path / "image.sqfs")
        try:
            server.init()
            ends["refused" if server.explore() else "served"] += 1
        except Gone:
            ends["not taken"] += 1
        status, said = server.end()
        # It has served, and may have reported damage; or has refused the image with a message. Nothing else.
        assert re.fullmatch(r"([^\n]* is damaged: [^\n]+\n)?" + (r"[^\n]+\n" if status else ""), said), (
            SEED,
            number,
            said,
        )
        assert status in (0, 1), (SEED, number, status, said)
    assert all(ends.values()), ends


def test_no_answer_is_longer_than_there_is_room_for(plain: Path) -> None:
    """The kernel asks for 128 KiB at the most, as INIT has set."""
    server = Server(plain)
    server.init()
    for opcode, name in ((READ, b"big"), (READDIR, b"many"), (READDIRPLUS, b"many")):
        node = server.lookup(name)
        assert 64 << 10 < len(server.ask(opcode, node, struct.pack("=QQI20x", 0, 0, 1 << 20))) <= 132 << 10
    assert server.listxattr(server.lookup(b"small"), 1 << 20) == []
    # Positions where no listing can continue: they have 32 bits, plus two for the dots.
    for offset in ((1 << 32) + 2, (1 << 32) + 14, 1 << 40):
        assert server.ask(READDIR, server.lookup(b"many"), struct.pack("=QQI20x", 0, offset, 4096)) == b""
    assert server.end() == (0, "")


def test_the_image_is_read_in_confinement(plain: Path, tmp_path: Path) -> None:
    """Every system call after the first byte of the image passes the filter."""
    trace = tmp_path / "trace"
    os.set_inheritable(keep := os.open("/dev/null", os.O_RDONLY), True)
    server = Server(plain, before=("strace", "-f", "-qq", "-o", str(trace)), pass_fds=(keep,))
    os.close(keep)
    server.init()
    assert server.explore() == 0
    assert server.end() == (0, "")
    calls = [line.split(None, 1)[1] for line in trace.read_text().splitlines()]
    places = {
        what: next(n for n, call in enumerate(calls) if call.startswith(what))
        for what in ("close_range", "prctl(PR_SET_NO_NEW_PRIVS", "prctl(PR_SET_SECCOMP", "pread64")
    }
    assert list(places) == sorted(places, key=places.__getitem__)
    assert not [call for call in calls[: places["pread64"]] if re.match(r"read\(|mmap\([^)]*, [3-9]\d*, ", call)]
    # Threads are created later.
    threads = [n for n, call in enumerate(calls) if re.match(r"clone\(.*CLONE_THREAD", call)]
    assert all(n > places["prctl(PR_SET_SECCOMP"] for n in threads)


def test_requests_that_do_not_fit_their_inode(plain: Path) -> None:
    server = Server(plain)
    server.init()
    nodes = {name: server.lookup(name) for name in (b"small", b"soft", b"fifo", b"first")}
    reading = struct.pack("=QQI20x", 0, 0, 4096)
    for name, opcode, body, number in (
        (b"small", LOOKUP, b"x\0", errno.ENOTDIR),
        (b"soft", READDIR, reading, errno.ENOTDIR),
        (b"fifo", READDIRPLUS, reading, errno.ENOTDIR),
        (b"first", READ, reading, errno.EINVAL),
        (b"fifo", READ, reading, errno.EINVAL),
        (b"small", READLINK, b"", errno.EINVAL),
        (b"first", READLINK, b"", errno.EINVAL),
        (b"first", 4711, b"", errno.ENOSYS),
    ):
        with pytest.raises(OSError) as refused:
            server.ask(opcode, nodes[name], body)
        assert (name, opcode, refused.value.errno) == (name, opcode, number)
    assert server.end() == (0, "")


@pytest.mark.parametrize("words", [(), ("-s",)], ids=["threads", "one"])
def test_further_threads_come_with_the_first_contents(plain: Path, words: tuple[str, ...]) -> None:
    server = Server(plain, *words)
    tasks = Path("/proc") / str(server.process.pid) / "task"
    server.init()
    small = server.lookup(b"small")
    assert len(list(tasks.iterdir())) == 1
    assert server.read(small) == b"small"
    assert len(list(tasks.iterdir())) == (1 if words else min(4, len(os.sched_getaffinity(0))))
    assert server.end() == (0, "")


def test_nothing_else_is_open_in_the_server(plain: Path) -> None:
    extra = [os.open("/etc/passwd", os.O_RDONLY) for _ in range(3)]
    os.dup2(extra[0], 200)
    server = Server(plain, pass_fds=(*extra, 200))
    for fd in (*extra, 200):
        os.close(fd)
    server.init()
    proc = Path("/proc") / str(server.process.pid)
    assert sorted(os.readlink(fd).split(":")[0] for fd in (proc / "fd").iterdir()) == sorted(
        ["/dev/null", "/dev/null", "pipe", "socket", str(plain), *(["socket"] if os.path.exists("/dev/log") else [])]
    )
    status = (proc / "status").read_text()
    assert re.search(r"^Seccomp:\s2$", status, re.M) and re.search(r"^NoNewPrivs:\s1$", status, re.M)
    assert server.end() == (0, "")


@pytest.mark.parametrize(
    ("words", "flags", "flags2", "timeout"),
    [
        ((), INIT_EXT, REQUEST_TIMEOUT, 0),
        (("-t", "45"), INIT_EXT, REQUEST_TIMEOUT | 1, 45),
        (("-t", "45"), INIT_EXT, 1, 0),
        (("-t", "45"), 0, REQUEST_TIMEOUT, 0),
        (("-s", "-t", "65535"), INIT_EXT, REQUEST_TIMEOUT, 65535),
    ],
    ids=["unasked", "45", "no such flag", "no second half", "longest"],
)
def test_the_kernels_timeout(plain: Path, words: tuple[str, ...], flags: int, flags2: int, timeout: int) -> None:
    server = Server(plain, *words)
    reply = server.init(flags, flags2)
    assert len(reply) == 64
    assert struct.unpack_from("=H", reply, 40)[0] == timeout
    wanted = (INIT_EXT, REQUEST_TIMEOUT) if timeout else (reply[15] << 24 & INIT_EXT, 0)
    assert (struct.unpack_from("=I", reply, 12)[0] & INIT_EXT, struct.unpack_from("=I", reply, 32)[0]) == wanted
    assert server.end() == (0, "")


@pytest.mark.parametrize("logging", [True, False])
def test_a_damaged_place_is_trouble_for_what_needs_it_and_told_once(tmp_path: Path, logging: bool) -> None:
    """A block of `big` can't be inflated: only that can't be read, and the node's log has one message."""
    (tmp_path / "tree").mkdir()
    text = b"".join(b"%d" % number for number in range(100_000))
    (tmp_path / "tree/big").write_bytes(text)
    (tmp_path / "tree/small").write_bytes(b"small")
    image = pack(tmp_path / "tree", tmp_path / "an \x1bimage.sqfs", "-no-fragments", "-b", "4K")
    data = bytearray(image.read_bytes())
    data[50_000:50_100] = bytes(100)
    image.write_bytes(data)
    (tmp_path / "dev").mkdir()
    before = ("unshare", "-m", "sh", "-c", f'mount --bind "{tmp_path}/dev" /dev; exec "$@"', "-")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.settimeout(20)
        if logging:
            log.bind(str(tmp_path / "dev/log"))
        server = Server(image, before=before)
        server.init()
        big = server.lookup(b"big")
        places = range(0, len(text), 4096)
        unreadable = set()
        for place in [*places, *places]:
            try:
                assert server.read(big, place, 4096) == text[place : place + 4096]
            except OSError as error:
                assert error.errno == errno.EIO
                unreadable.add(place)
        assert 1 <= len(unreadable) <= 2
        assert server.read(server.lookup(b"small")) == b"small"
        status, said = server.end()
        line = rf"{re.escape(str(tmp_path))}/an \?image.sqfs is damaged: .*data block.*, at byte \d+"
        assert (status, bool(re.fullmatch(line + "\n", said))) == (0, True), said
        if logging:
            said = log.recv(1000).decode()
            assert re.fullmatch(r"<12>ch-squashfuse_ll\[\d+\]: " + line, said), said


def test_what_is_no_image_is_refused_by_name(plain: Path, tmp_path: Path) -> None:
    good = plain.read_bytes()
    image = tmp_path / "image.sqfs"
    for at, what, line in (
        (0, b"sqsh", "not a SquashFS image"),
        (28, b"\3", "SquashFS 3.0: only 4.0 is supported"),
        (20, b"\2", "the image's compression is not supported: lzma (2)"),
        (20, b"\7", "the image's compression is not supported: unknown (7)"),
        (22, b"\x15", "the image is damaged: its superblock"),
        (32, b"\xff\xff\xff", "the image is damaged: its root directory"),
        (40, struct.pack("<Q", len(good) + 1), f"the image is truncated: {len(good)} bytes of {len(good) + 1}"),
        (26, b"\0\0", "the image is damaged: its superblock"),
    ):
        image.write_bytes(good[:at] + what + good[at + len(what) :])
        status, said = Server(image).end()
        assert (status, said.splitlines()[-1]) == (1, line)
    image.write_bytes(good[:95])
    assert Server(image).end() == (1, "not a SquashFS image\n")
    for words in (
        ("-o", "offset=x"),
        ("-o", "offset=1k"),
        ("-o", "ro"),
        ("-t", "0"),
        ("-w", "3"),
        ("-w", "3:4x"),
        ("-x",),
    ):
        assert Server(plain, *words).end()[1].startswith("usage: ch-squashfuse_ll -f|-b ")
