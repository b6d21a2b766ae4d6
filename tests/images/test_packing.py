# SPDX-License-Identifier: Apache-2.0
"""The programs that pack an image, and the disks that it is made on."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from slurm_ch.errors import ChError
from slurm_ch.images import assemble, fetch, pack, resolve

from .craft import Layout
from .pulled import Make, fake_packer, nothing_left, parse, refused
from .registry import Registry


@pytest.mark.row("F1")
def test_without_the_programs(
    plain: Registry, layout: Layout, puller: Make, env: dict[str, str], tmp_path: Path
) -> None:
    """Each is named, and its package; what is in the cache works without them."""
    name = plain.push(layout, "org/app:1")
    programs = {
        "skopeo": "install the package skopeo",
        "tar2sqfs": "install squashfs-tools-ng, or squashfs-tools 4.6 or later",
    }
    whole = env["PATH"]
    for missing, words in programs.items():
        env["PATH"] = str(tmp_path / missing)
        Path(env["PATH"]).mkdir()
        for program in programs:
            if program != missing:
                os.symlink(shutil.which(program, path=whole) or "", tmp_path / missing / program)
        refused(puller(), name, words)
    env["PATH"] = whole
    resolved, path = puller().get(parse(name))
    env["PATH"] = "/nonexistent"
    assert puller().get(parse(name), resolve.CACHED)[1] == path
    assert puller().get(parse(resolved.pinned))[1] == path


def test_a_packer_that_fails(layout: Layout, puller: Make, tmp_path: Path) -> None:
    """With a status, by a signal, silently short of files, for want of room: nothing is published."""
    real = shutil.which("tar2sqfs")
    version = '[ "$1" = --version ] && { echo "tar2sqfs 1.2.0"; exit; }\nfor out; do :; done\n'
    for script, words in (
        ("cat > /dev/null; echo 'no good: x' >&2; exit 3", "tar2sqfs failed with status 3: no good: x"),
        ("exit 4", "tar2sqfs failed with status 4: it gives no reason"),
        ("kill -9 $$", "tar2sqfs was killed by signal 9: if memory ran out, .* or pull the image before the job"),
        ("cat > /dev/null; echo 'write: No space left on device' >&2; exit 1", "no room for the image .*prune"),
        (
            f'head -c 20480 | {real} -q -f -c zstd "$out" 2> /dev/null; cat > /dev/null',
            "(not a SquashFS|can't read|has .* inodes, not)",
        ),
        ('cat > /dev/null; printf hsqs > "$out"', "not a SquashFS file"),
        (f'{real} -q -f -c zstd "$out" && truncate -s 5000 "$out"', "a SquashFS file that is truncated: 5000 of"),
        (
            f'tar -cC {tmp_path} -f - --no-recursion . | {real} -q -f -c zstd "$out"; cat > /dev/null',
            "has .* inodes, not",
        ),
    ):
        refused(puller(packer=fake_packer(tmp_path / "bin", "tar2sqfs", version + script)), str(layout), words)


def test_which_packer(tmp_path: Path) -> None:
    """tar2sqfs, else mksquashfs, but only one that reads archives as they are."""
    both = tmp_path / "both"
    fake_packer(both, "mksquashfs", "echo 'mksquashfs version 4.6.1 (2023/03/25)'")
    assert pack.find(path=str(both)).version == "4.6.1"
    argv = pack.find(path=str(both)).argv("out", 3)
    assert argv[1:3] == ["-", "out"] and {"-tar", "-exit-on-error", "-root-mode", "-Xcompression-level"} <= set(argv)
    fake_packer(both, "tar2sqfs", "echo 'tar2sqfs (squashfs-tools-ng) 1.3.2'")
    assert pack.find(path=str(both)).name == "tar2sqfs"
    assert pack.find("mksquashfs", str(both)).name == "mksquashfs"
    old = tmp_path / "old"
    fake_packer(old, "mksquashfs", "echo 'mksquashfs version 4.5.1 (2022/03/17)'; exit 1")
    with pytest.raises(ChError, match=r"no tar2sqfs, .*mksquashfs is 4\.5\.1, too old to read archives"):
        pack.find(path=str(old))
    with pytest.raises(ChError, match="packer=gzip: neither"):
        pack.find("gzip")


@pytest.mark.row("F13")
def test_a_full_disk(layout: Layout, puller: Make, plain: Registry, env: dict[str, str], tmp_path: Path) -> None:
    """A file system that is too small is noticed before the download; one that fills up, in the middle."""
    name = plain.push(layout, "org/app:1")
    small = tmp_path / "small"
    small.mkdir()
    for size, text in (("600k", name), ("700k", str(layout))):
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", small], check=True)
        try:
            env["SLURM_CH_CACHE"] = f"{small}/cache"
            refused(
                puller(), text, f"{small}/cache/tmp.*: no room for the image .disk or quota full.: `slurm-ch prune`"
            )
        finally:
            subprocess.run(["umount", small], check=True)


@pytest.mark.row("F13")
def test_blobs_on_the_local_disk(
    plain: Registry, layout: Layout, puller: Make, env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TMPDIR has the download where it has room; without, the cache does. Nothing stays in either."""
    name = plain.push(layout, "org/app:1")
    seen: list[str] = []
    copy = fetch.Skopeo.copy
    monkeypatch.setattr(
        fetch.Skopeo,
        "copy",
        lambda self, ref, digest, to, *more: (seen.append(to), copy(self, ref, digest, to, *more))[1],
    )
    local = tmp_path / "local"
    local.mkdir()
    env["TMPDIR"] = str(local)
    one = puller()
    one.get(parse(name))
    assert seen[-1].startswith(f"{local}/slurm_ch.") and list(local.iterdir()) == []
    monkeypatch.setattr(assemble, "_free", lambda path: 0 if path == str(local) else 1 << 40)
    one.get(parse(name), resolve.ALWAYS)
    assert seen[-1].startswith(one.store.directory) and list(local.iterdir()) == []
    nothing_left(one)
