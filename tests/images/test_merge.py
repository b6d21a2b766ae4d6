# SPDX-License-Identifier: Apache-2.0
"""Layers merged in memory are what an unpacking of them would be."""

from __future__ import annotations

import io
import os
import random
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm_ch.images import layers, merge, pack
from slurm_ch.images.flat import Flat
from slurm_ch.images.stream import LayerError, Stream

from . import craft
from .craft import item, link, symlink
from .unpack import differences, snapshot, unpack

LONG = "n" * 120
DEEP = "/".join(["d" * 100] * 3)


def write_layers(directory: Path, archives: list[bytes], compressions: list[str]) -> list[merge.Layer]:
    found = []
    for number, (data, how) in enumerate(zip(archives, compressions)):
        path = directory / f"layer{number}"
        path.write_bytes(craft.COMPRESSIONS[how](data)[0])
        found.append(merge.Layer(str(path), f"layer {number}"))
    return found


def merged(directory: Path, archives: list[bytes], how: str = "plain", faithful: bool = True) -> Flat:
    tree = merge.Tree()
    for one in write_layers(directory, archives, [how] * len(archives)):
        tree.add(one)
    return Flat(tree, faithful)


def flat_tar(flat: Flat, path: Path) -> Path:
    with path.open("wb") as file:
        flat.write(file.fileno())
    return path


def nasty() -> list[bytes]:
    """Everything that has been seen to go wrong in one tool or another."""
    caps = b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
    base = [
        item("usr/"), item("usr/bin/"), symlink("bin", "usr/bin"), item("bin/through", "through a link"),
        item("etc/"), item("etc/mode", "x"), item("modedir/", mode=0o755), item("modedir/f", "f"),
        item("h/"), item("h/one", "hard"), link("h/two", "h/one"), link("h/three", "h/one"),
        item("H2", "first"), link("H2link", "H2"), item("lowerfile", "lower"),
        item("opq/"), item("opq/old", "old"), item("opq/sub/"), item("opq/sub/old", "old"),
        item("opq2/"), item("opq2/a", "a"), item("again", "1"), item("again", "2", mtime=5),
        item("f2d", "file"), item("d2f/"), item("d2f/x", "x"), item("d2l/"), item("d2l/y", "y"), symlink("l2d", "usr"),
        symlink("l2f", "usr"), item("wh-readd/"), item("wh-readd/old", "old"), item("wh-file", "old"),
        item("none", "secret", mode=0), item("sticky/", mode=0o1777), item("setuid", "s", mode=0o4755), item("setgid/", mode=0o2750),
        item("fifo", type=tarfile.FIFOTYPE), item("char", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        item("block", type=tarfile.BLKTYPE, devmajor=259, devminor=70000),
        item(LONG, "long"), item(f"{DEEP}/{LONG}", "deep"), symlink("longlink", "/" + "t" * 150), link("hardlong", f"{DEEP}/{LONG}"),
        symlink("abs", "/usr/bin"), item("new\nline", "n"), item("back\\slash", "b"), item("quote'\"s", "q"), item("sp ace ", "s"),
        item("non-ascii-\u00fc\u4e2d", "u"), item("bytes-\udcff\udcfe", "b", pax_headers={}),
        item("bigid", "i", uid=3_000_000, gid=4_000_000_000),
        item("xattrs", "x", pax_headers={"SCHILY.xattr.user.a": "value", "SCHILY.xattr.user.empty": ""}),
        item("caps", "c", pax_headers={"SCHILY.xattr.security.capability": caps.decode("latin-1")}),
        item("negative", "t", mtime=-5), item("fraction", "t", mtime=1_600_000_000.75),
        item("./dotted/name", "d"), item("implicit/parents/here", "i"), item("empty", ""), item("big", os.urandom(3_000_000)),
    ]  # fmt: skip
    second = [
        item("h/.wh.one"), item("H2", "second"), item("bin/second", "through again"), item("etc/.wh.nothing"),
        link("h/late", "lowerfile"), item("modedir/", mode=0o700), item("opq/new", "new"), item("opq/.wh..wh..opq"),
        item("opq/after", "after"), item("opq2/.wh..wh..opq"), item("opq2/.wh..wh..opq"), item("opq2/b", "b"),
        item("f2d/"), item("f2d/in", "in"), item("d2f", "file"), symlink("d2l", "etc"), item("l2d/"), item("l2d/z", "z"),
        item("l2f", "file now"), item(".wh.wh-readd"), item("wh-readd/"), item("wh-readd/new", "new"),
        item("wh-file", "new"), item(".wh.wh-file"), item("new.wh.name", "not a whiteout"),
        item(".wh..wh.aufs"), item(".wh..wh.plnk/"), item(".wh..wh.plnk/1.2", "aufs"),
    ]  # fmt: skip
    third = [
        item(".wh.lowerfile"),
        item(".wh.big"),
        item("bin/.wh.through"),
        item("last", "l"),
        item("f2d/more/", mode=0o711),
    ]
    return [craft.layer(base), craft.layer(second), craft.layer(third, tarfile.GNU_FORMAT)]


@pytest.mark.parametrize("how", ["gzip", "zstd", "plain"])
def test_nasty_layers_as_an_unpacking_has_them(tmp_path: Path, how: str) -> None:
    archives = nasty()
    unpack(archives, tmp_path / "theirs")
    flat = merged(tmp_path, archives, how)
    size = pack.pack(flat, str(tmp_path / "ours.sqfs"), pack.find())
    assert size == (tmp_path / "ours.sqfs").stat().st_size
    subprocess.run(
        ["unsquashfs", "-q", "-n", "-d", tmp_path / "ours", tmp_path / "ours.sqfs"], check=True, capture_output=True
    )
    theirs, ours = snapshot(tmp_path / "theirs"), snapshot(tmp_path / "ours")
    # unsquashfs before 4.5 cuts a device's two numbers to a byte each.
    said = subprocess.run(["rdsquashfs", "-d", tmp_path / "ours.sqfs"], check=True, capture_output=True).stdout
    major, minor = re.search(rb"^nod /?block .* b (\d+) (\d+)$", said, re.MULTILINE).groups()  # type: ignore[union-attr]
    ours["block"]["device"] = (int(major), int(minor))
    assert len(theirs) > 60
    assert differences(theirs, ours) == []


def random_layers(dice: random.Random) -> list[bytes]:
    """Return layers that a build could have made: few names, so that they meet often."""
    directories = ["a", "a/b", "c", "c/d", "c/d/e"]
    known: dict[str, str] = {}  # what there is at the top of the stack: name to kind
    result = []
    for number in range(dice.randint(1, 5)):
        items: list[craft.Item] = []
        added: dict[str, str] = {}
        targeted: list[str] = []

        def parent_is_good(name: str, known: dict[str, str] = known, added: dict[str, str] = added) -> bool:
            parts = name.split("/")[:-1]
            above = ["/".join(parts[: count + 1]) for count in range(len(parts))]
            return all({**known, **added}.get(one, "d") == "d" for one in above)

        marks = []
        for _ in range(dice.randint(0, 3) if number else 0):
            there = sorted(known)
            if not there:
                break
            name = dice.choice(there)
            if known[name] == "d" and dice.random() < 0.5:
                marks.append(item(f"{name}/.wh..wh..opq"))
            else:
                head, _, tail = name.rpartition("/")
                marks.append(item(f"{head}/.wh.{tail}" if head else f".wh.{tail}"))
                del known[name]
            for one in [one for one in known if one.startswith(name + "/")]:
                del known[one]
        for _ in range(dice.randint(1, 12)):
            directory = dice.choice(["", *directories])
            name = (directory + "/" if directory else "") + dice.choice(["f", "g", "h", "b", "d", "e"])
            kind = dice.choice("fffdlhF")
            mode = dice.choice([0o644, 0o755, 0, 0o4711])
            owner = {"uid": dice.choice([0, 7, 3_000_000]), "gid": dice.choice([0, 9])}
            everything = {**known, **added}
            if not parent_is_good(name):
                continue
            if name in added and not (added[name] == kind == "f"):
                continue
            if kind != "d" and any(one.startswith(name + "/") for one in (*added, *targeted)):
                continue
            if kind == "h":
                targets = [
                    one for one, what in everything.items() if what in "fF" and one != name and parent_is_good(one)
                ]
                if not targets or everything.get(name) == "d":
                    continue
                target = dice.choice(sorted(targets))
                items.append(link(name, target))
                targeted.append(target)
                added[name] = everything[target]
            elif kind == "f":
                items.append(item(name, f"{number} {name}" * dice.randint(0, 300), mode=mode, **owner))
                added[name] = "f"
            elif kind == "F":
                items.append(item(name, type=tarfile.FIFOTYPE, mode=mode, **owner))
                added[name] = "F"
            elif kind == "l":
                items.append(symlink(name, dice.choice(["nowhere", "/abs/olute", "x" * 130]), **owner))
                added[name] = "l"
            else:
                items.append(item(name + "/", mode=dice.choice([0o755, 0o700, 0o1777]), **owner))
                added[name] = "d"
            if kind != "d":
                for one in [one for one in known if one.startswith(name + "/")]:
                    del known[one]
            head = name.rpartition("/")[0]
            while head:
                added.setdefault(head, "d") if head not in known else None
                head = head.rpartition("/")[0]
        for mark in marks:
            items.insert(dice.randint(0, len(items)), mark)
        known.update(added)
        result.append(craft.layer(items, dice.choice([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])))
    return result


def test_random_layers_as_an_unpacking_has_them(tmp_path: Path) -> None:
    full = os.environ.get("CHAOS") == "full"
    seed = int(os.environ.get("SEED", "20261128"))
    for number in range(2000 if full else 60):
        place = tmp_path / str(number)
        place.mkdir()
        archives = random_layers(random.Random(f"{seed} {number}"))
        unpack(archives, place / "theirs")
        (place / "ours").mkdir()
        (place / "ours").chmod(0o755)
        tar = flat_tar(merged(place, archives), place / "flat.tar")
        subprocess.run(
            ["tar", "-x", "-p", "-P", "--same-owner", "-C", place / "ours", "-f", tar], check=True, capture_output=True
        )
        assert differences(snapshot(place / "theirs"), snapshot(place / "ours")) == [], f"seed {seed}, stack {number}"
        subprocess.run(["rm", "-rf", place], check=True)


def entries(flat: Flat, path: Path) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(flat_tar(flat, path)) as archive:
        return {one.name: one for one in archive.getmembers()}


def test_what_is_packed_belongs_to_root_and_can_be_read(tmp_path: Path) -> None:
    found = entries(merged(tmp_path, nasty(), faithful=False), tmp_path / "flat.tar")
    assert {(one.uid, one.gid) for one in found.values()} == {(0, 0)}
    assert found["none"].mode == 0o400 and found["modedir"].mode == 0o700 and found["setuid"].mode == 0o4755
    assert "char" not in found and "block" not in found and found["fifo"].isfifo()
    assert found["xattrs"].pax_headers == {"SCHILY.xattr.user.a": "value", "SCHILY.xattr.user.empty": ""}
    assert found["caps"].pax_headers == {}


@pytest.mark.row("F17")
def test_links_in_the_image_lead_no_further_than_its_root(tmp_path: Path) -> None:
    """An absolute link, one with too many `..`, and one that isn't there yet, as parents."""
    first = craft.layer(
        [item("real/"), symlink("abs", "/real"), symlink("up", "../../real"), symlink("none", "made/here")]
    )
    second = craft.layer([item("abs/a", "a"), item("up/b", "b"), item("none/c", "c"), item("abs/.wh.x")])
    third = craft.layer([item("up/.wh.a")])
    found = entries(merged(tmp_path, [first, second, third]), tmp_path / "flat.tar")
    assert {name for name, one in found.items() if one.isreg()} == {"real/b", "made/here/c"}


def test_a_file_in_the_way_of_a_directory_gives_way(tmp_path: Path) -> None:
    archives = [craft.layer([item("a", "file")]), craft.layer([item("a/b", "below")])]
    assert entries(merged(tmp_path, archives), tmp_path / "flat.tar")["a/b"].isreg()


def test_a_circle_of_links_is_an_error(tmp_path: Path) -> None:
    archives = [craft.layer([symlink("a", "b"), symlink("b", "a")]), craft.layer([item("a/x", "x")])]
    with pytest.raises(LayerError, match="layer 1: a: too many symbolic links"):
        merged(tmp_path, archives)


@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0", "gnu"])
def test_sparse_files(tmp_path: Path, version: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with (source / "sparse").open("wb") as file:
        for offset in range(0, 60_000_000, 2_000_000):
            file.seek(offset)
            file.write(f"at {offset}".encode())
        file.truncate(61_000_000)
    form = ["--format=gnu"] if version == "gnu" else ["--format=posix", f"--sparse-version={version}"]
    data = subprocess.run(["tar", "-cS", *form, "-C", source, "sparse"], check=True, capture_output=True).stdout
    assert len(data) < 1_000_000
    tar = flat_tar(merged(tmp_path, [data]), tmp_path / "flat.tar")
    with tarfile.open(tar) as archive:
        found = archive.extractfile("sparse")
        assert found is not None and found.read() == (source / "sparse").read_bytes()


def test_more_in_one_member_than_there_is(tmp_path: Path) -> None:
    """A gzip layer of several members, as pigz and stargz write, with padding after it."""
    data = craft.layer([item("a", "a" * 100_000), item("b", "b")])
    half = len(data) // 2
    packed = craft.COMPRESSIONS["gzip"](data[:half])[0] + craft.COMPRESSIONS["gzip"](data[half:])[0] + bytes(1000)
    (tmp_path / "layer").write_bytes(packed)
    tree = merge.Tree()
    tree.add(merge.Layer(str(tmp_path / "layer"), "it"))
    assert set(entries(Flat(tree), tmp_path / "flat.tar")) == {".", "a", "b"}


def header(name: bytes = b"x", kind: bytes = b"0", size: bytes = b"00000000000\0", **fields: bytes) -> bytes:
    """Return a header with the sum that it must have, whatever is in it."""
    block = bytearray(512)
    for at, value in ((0, name[:100]), (100, b"0000644\0"), (108, b"0000000\0"), (116, b"0000000\0"), (124, size)):
        block[at : at + len(value)] = value
    block[136:148] = b"00000000000\0"
    block[156:157] = kind
    block[157 : 157 + len(fields.get("link", b""))] = fields.get("link", b"")
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(**records: str) -> bytes:
    data = b""
    for name, value in records.items():
        key = name.replace("__", ".")
        length = len(key) + len(value.encode()) + 3
        length += len(str(length + 2))
        data += f"{length} {key}={value}\n".encode()
    return header(b"pax", b"x", b"%011o\0" % len(data)) + data + bytes(-len(data) % 512)


def hostile() -> Iterator[tuple[str, bytes, str]]:
    """Yield a name, a layer, and the message about it."""
    end = bytes(1024)
    yield "dotdot", header(b"a/../../b") + end, r"a name with \.\. in it: a/\.\./\.\./b"
    yield "dotdot first", header(b"../b") + end, r"a name with \.\. in it"
    yield "absolute", header(b"/etc/passwd") + end, "an absolute name: /etc/passwd"
    yield "NUL", pax(path="a\0b") + header() + end, "a name with a NUL"
    yield "long part", pax(path="n" * 300) + header() + end, "a name that is too long"
    yield "long path", pax(path="/".join(["n" * 200] * 30)) + header() + end, "a name that is too long"
    yield "link out", header(b"l", b"1", link=b"../../etc/shadow") + end, r"a name with \.\. in it"
    yield "link to nothing", header(b"l", b"1", link=b"gone") + end, "a hard link to gone, which is not a file"
    yield "link to a directory", header(b"d/", b"5") + header(b"l", b"1", link=b"d") + end, "which is not a file"
    yield "empty symlink", header(b"l", b"2") + end, "a symbolic link to"
    yield "huge extended header", header(b"p", b"x", b"77777777777\0") + end, "an extended header of 8589934591 bytes"
    yield "huge long name", header(b"p", b"L", b"00010000000\0") + end, "an extended header of"
    yield "negative size", header(b"x", b"0", b"\xff" * 12) + end, "a size of -1"
    yield "enormous size", header(b"x", b"0", b"\x80" + b"\xff" * 11) + end, "a size of"
    yield "odd number", header(b"x", b"0", b"0x12\0\0\0\0\0\0\0\0") + end, "not a number: 0x12"
    yield "odd binary", header(b"x", b"0", b"\x81" + bytes(11)) + end, "a number out of range"
    yield "truncated", header(b"x", b"0", b"00000010000\0") + b"short", "truncated"
    yield "truncated header", header(b"x") + b"short", "truncated"
    yield "wrong sum", header().replace(b"ustar", b"ustaR") + end, "not a tar archive"
    yield "no archive", b"<html>" * 100, "not a tar archive"
    yield (
        "pax without end",
        header(b"p", b"x", b"%011o\0" % 9) + b"99 path=x" + bytes(503) + header() + end,
        "a wrong extended header",
    )
    yield (
        "pax of zero",
        header(b"p", b"x", b"%011o\0" % 9) + b"0 path=xx" + bytes(503) + header() + end,
        "a wrong extended header",
    )
    yield "pax size", pax(size="-1") + header() + end, "not a number: -1"
    yield "pax time", pax(mtime="nan") + header() + end, "not a time: nan"
    yield "whiteout of the parent", header(b"a/.wh...") + end, "a whiteout of nothing"
    yield "whiteout of nothing", header(b".wh.") + end, "a whiteout of nothing"
    yield "root is a file", header(b"./", b"1", link=b"x") + end, "which is not a file"
    sparse = {"GNU__sparse__map": "0,5,3,5", "GNU__sparse__size": "100"}
    yield (
        "sparse overlap",
        pax(**sparse) + header(size=b"00000000012\0") + bytes(512) + end,
        "a wrong map of a sparse file",
    )
    sparse = {"GNU__sparse__map": "0,10", "GNU__sparse__size": "5"}
    yield (
        "sparse beyond",
        pax(**sparse) + header(size=b"00000000012\0") + bytes(512) + end,
        "a wrong map of a sparse file",
    )
    sparse = {"GNU__sparse__major": "1", "GNU__sparse__minor": "0", "GNU__sparse__name": "x"}
    yield (
        "sparse map too long",
        pax(**sparse) + header(size=b"77777777777\0") + b"9" * 512 * 3000,
        "the map of a sparse file is too long",
    )


@pytest.mark.parametrize(("data", "words"), [pytest.param(d, w, id=n) for n, d, w in hostile()])
@pytest.mark.row("F17")
def test_hostile_layers_are_refused(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(LayerError, match=f"layer 0: .*{words}"):
        merged(tmp_path, [data])


@pytest.mark.row("F17")
def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More entries, more bytes inflated, more bytes in sparse files than there may be."""
    monkeypatch.setattr(merge, "ENTRIES_MAX", 3)
    with pytest.raises(LayerError, match="more than 3 entries"):
        merged(tmp_path, [craft.layer([item(str(n)) for n in range(4)])])
    path = tmp_path / "bomb"
    path.write_bytes(craft.COMPRESSIONS["gzip"](craft.layer([item("zeros", bytes(20_000_000))]))[0])
    with pytest.raises(LayerError, match="larger than the limit"):
        merge.Tree(bytes_max=10_000_000).add(merge.Layer(str(path), "it"))
    sparse = {"GNU__sparse__map": "0,0", "GNU__sparse__size": str(1 << 50)}
    path.write_bytes(pax(**sparse) + header() + bytes(1024))
    tree = merge.Tree()
    tree.add(merge.Layer(str(path), "it"))
    with pytest.raises(LayerError, match="unpacked, the image is larger than the limit"):
        Flat(tree)


@pytest.mark.row("F7")
def test_a_digest_that_is_not_the_layers(tmp_path: Path) -> None:
    data = craft.layer([item("a", "a")]) + b"behind the end"
    (tmp_path / "layer").write_bytes(data)
    merge.Tree().add(merge.Layer(str(tmp_path / "layer"), "it", craft.digest(data)))
    with pytest.raises(LayerError, match="damaged or changed"):
        merge.Tree().add(merge.Layer(str(tmp_path / "layer"), "it", craft.digest(data + b".")))


@pytest.mark.parametrize("how", ["gzip", "zstd", "bz2", "xz"])
@pytest.mark.row("F7")
def test_truncated_and_damaged_layers(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever module or program inflates them."""
    import bz2
    import lzma

    data = craft.layer([item(str(n), os.urandom(5000)) for n in range(100)])
    packed = {"bz2": bz2.compress, "xz": lzma.compress}.get(how, lambda data: craft.COMPRESSIONS[how](data)[0])(data)
    for broken in (packed[: len(packed) // 2], packed[:300] + b"garbage" + packed[307:]):
        (tmp_path / "layer").write_bytes(broken)
        with pytest.raises(LayerError, match="it: (truncated|damaged|not a tar)"):
            merge.Tree().add(merge.Layer(str(tmp_path / "layer"), "it"))
    (tmp_path / "layer").write_bytes(packed)
    merge.Tree().add(merge.Layer(str(tmp_path / "layer"), "it", craft.digest(packed)))


@pytest.mark.parametrize("how", ["gzip", "zstd"])
def test_without_the_faster_modules(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in ("isal", "zstandard", "compression"):
        monkeypatch.setitem(sys.modules, name, None)
    test_truncated_and_damaged_layers(tmp_path, how, monkeypatch)


def test_headers_as_tarfile_reads_them(tmp_path: Path) -> None:
    """Archives of all forms with some bits changed: what both accept, both read alike."""
    full = os.environ.get("CHAOS") == "full"
    dice = random.Random(os.environ.get("SEED", "1"))
    items = [
        item("a/"), item("a/b", "x" * 700), item("a/" + "c" * 90, "y"), item(f"{DEEP}/{LONG}", "z" * 600),
        symlink("s", "t" * 40), link("l", "a/b"), item("f", type=tarfile.FIFOTYPE), item("u", "u", uid=5_000_000, mtime=1.5),
    ]  # fmt: skip
    originals = [craft.layer(items, form) for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)]
    agreed = 0
    for number in range(20_000 if full else 1500):
        data = bytearray(originals[number % 2])
        if number > 1:
            for _ in range(dice.randint(1, 3)):
                at = dice.randrange(len(data) // 512) * 512
                where = dice.randrange(157)
                if data[at + 156] in b"LK" and 124 <= where < 136:
                    continue  # a long name without an end: tarfile reads on, Go's reader doesn't, nor do we
                # tarfile reads negative sizes, and goes back for ever.
                data[at + where] = dice.choice(b"\0 0157xLKgS/9a" if 100 <= where < 156 else b"\0 0157xLKgS/\x80\xff9a")
                block = data[at : at + 512]
                block[148:156] = b"        "
                data[at + 148 : at + 156] = b"%06o\0 " % sum(block)
        (tmp_path / "layer").write_bytes(data)
        try:
            with Stream(str(tmp_path / "layer"), "it", 1 << 30) as stream:
                ours = [
                    (
                        e.name.rstrip(b"/"),
                        e.kind,
                        e.mode,
                        e.size,
                        e.offset,
                        e.link if e.kind in b"12" else b"",
                        e.sparse is not None,
                    )
                    for e in layers.entries(stream)
                ]
        except LayerError:
            continue
        if any(b"\0" in one[0] for one in ours):
            continue  # the merge refuses these
        try:
            with tarfile.open(fileobj=io.BytesIO(bytes(data)), mode="r:", errors="surrogateescape") as archive:
                theirs = [
                    (
                        os.fsencode(m.name).rstrip(b"/"), _kind(m), m.mode & 0o7777, m.size if _kind(m) == b"0" else 0, m.offset_data,
                        os.fsencode(m.linkname) if m.issym() or m.islnk() else b"", m.issparse(),
                    )
                    for m in archive.getmembers()
                ]  # fmt: skip
        except (tarfile.TarError, ValueError, OverflowError, UnicodeError):
            continue
        if len(theirs) == len(ours):
            if ours != theirs:
                # Of two long names before one header tarfile takes the first, GNU tar the last.
                listed = subprocess.run(
                    ["tar", "-tP", "--quoting-style=literal", "-f", tmp_path / "layer"],
                    check=False,
                    capture_output=True,
                )
                assert b"".join(one[0].rstrip(b"/") + b"\n" for one in ours) == listed.stdout.replace(b"/\n", b"\n"), (
                    number
                )
            agreed += 1
    assert agreed > 100


def _kind(member: tarfile.TarInfo) -> bytes:
    kinds = {tarfile.LNKTYPE: b"1", tarfile.SYMTYPE: b"2", tarfile.CHRTYPE: b"3", tarfile.BLKTYPE: b"4"}
    kinds |= {tarfile.DIRTYPE: b"5", tarfile.FIFOTYPE: b"6"}
    return kinds.get(member.type, b"0")
