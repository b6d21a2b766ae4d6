# SPDX-License-Identifier: Apache-2.0
"""Rows of the table of behaviour: binds."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import settings

Good = Callable[..., str]
Fails = Callable[..., str]


@pytest.mark.row("B2")
def test_b2_missing_source(fails: Fails, image: Path) -> None:
    line = fails(31, "-b", "/nonexistent:/mnt", image, "--", "true")
    assert line == "--bind=/nonexistent:/mnt: can't bind: source not found: /nonexistent"


@pytest.mark.row("B2")
def test_b2_source_that_climbs_above_the_root(good: Good, image: Path, world_tmp: Path) -> None:
    link = world_tmp / "climbs"
    if not link.is_symlink():
        link.symlink_to("../" * 20 + "usr/share")
    for source in ("/../usr/share", "/usr/../../../usr/share", link):
        assert good("-b", f"{source}:/mnt", image, "--", "ls", "-d", "/mnt/doc") == "/mnt/doc\n"


@pytest.mark.row("B3")
def test_b3_missing_destination(fails: Fails, good: Good, image: Path) -> None:
    for write in ([], ["-W"]):
        assert good(*write, "-b", "/usr/share:/a/b", image, "--", "ls", "-d", "/a/b/doc") == "/a/b/doc\n"
        hostname = good(*write, "-b", "/etc/hostname:/c/d", image, "--", "cat", "/c/d")
        assert hostname == Path("/etc/hostname").read_text()
    # Over the host's own directories nothing can be laid.
    line = fails(31, "-b", "/usr:/a/b", "/", "--", "true")
    assert line == "--bind=/usr:/a/b: can't bind: destination not found: /a/b"


@pytest.mark.row("B3")
def test_b3_write_makes_it_in_the_image(good: Good, fails: Fails, world_tmp: Path, image_dir: Path) -> None:
    copy = world_tmp / "made-in"
    subprocess.run(["cp", "-a", image_dir, copy], check=True)
    assert good("-w", "-b", "/usr/share:/new/dir", copy, "--", "ls", "-d", "/new/dir/doc") == "/new/dir/doc\n"
    assert good("-w", "-b", "/etc/hostname:/new/file", copy, "--", "cat", "/new/file")
    assert [path.name for path in sorted((copy / "new").iterdir())] == ["dir", "file"]
    assert (copy / "new/file").read_text() == ""
    # What is made must be in the image: nothing is covered to make it.
    os.chown(copy / "srv", 0, 0)
    line = fails(31, "-w", "-b", "/usr/share:/srv/x", copy, "--", "true")
    assert line == (
        "--bind=/usr/share:/srv/x: can't bind: can't create /srv/x (make it in the image yourself, or ask for write-fake"
        " instead of write): Permission denied"
    )
    for there in ("/tmp/slurm_ch-new", "/dev/shm/slurm_ch-new"):
        line = fails(31, "-w", "-b", f"/etc/hostname:{there}", copy, "--", "true")
        assert "is bound from the host; nothing is created there" in line


@pytest.mark.row("B3")
def test_b3_unwriteable_parent_is_overmounted(good: Good, world_tmp: Path, image_dir: Path) -> None:
    copy = world_tmp / "roots-image"
    subprocess.run(["cp", "-a", image_dir, copy], check=True)
    subprocess.run(["chown", "-hR", "0:0", copy], check=True)
    (copy / "var/spool/neighbour").write_text("still here\n")
    (copy / "var/spool/link").symlink_to("neighbour")
    out = good("-W", "-b", "/usr/share:/var/spool/x/y", "-b", "/etc/hostname:/var/spool/z", copy, "--", "sh", "-c",
               "ls -d /var/spool/x/y/doc; cat /var/spool/neighbour /var/spool/link; cat /var/spool/z; ls /var/spool")  # fmt: skip
    hostname = Path("/etc/hostname").read_text()
    assert out == f"/var/spool/x/y/doc\nstill here\nstill here\n{hostname}link\nneighbour\nx\nz\n"
    assert sorted(path.name for path in (copy / "var/spool").iterdir()) == ["link", "neighbour"]


@pytest.mark.parametrize("destination", ["/../x", "/mnt/../../x", "/up", "/up/x", "/by/x", "/srv/loose/../../../x"])
@pytest.mark.row("B4")
def test_b4_destination_cannot_escape(fails: Fails, world_tmp: Path, image_dir: Path, destination: str) -> None:
    copy = world_tmp / "links"
    if not copy.exists():
        subprocess.run(["cp", "-a", image_dir, copy], check=True)
        (copy / "up").symlink_to("../../../../../../tmp")
        (copy / "by").symlink_to("/mnt/../../tmp")
        (copy / "srv/loose").symlink_to("/var/tmp/..")
    for write in ([], ["-W"]):
        line = fails(31, *write, "-b", f"/usr:{destination}", copy, "--", "true")
        assert line == f"--bind=/usr:{destination}: can't bind: {destination} not subdirectory of the image's root"


@pytest.mark.row("B4")
def test_b4_links_that_stay_inside_work(good: Good, world_tmp: Path, image_dir: Path) -> None:
    copy = world_tmp / "inner-links"
    subprocess.run(["cp", "-a", image_dir, copy], check=True)
    (copy / "var/inner").symlink_to("../mnt")
    (copy / "absolute").symlink_to("/mnt")
    for place in ("/var/inner", "/absolute"):
        assert good("-b", f"/usr/share:{place}", copy, "--", "ls", "-d", "/mnt/doc") == "/mnt/doc\n"
    assert good("-b", "/usr/share:/srv/../mnt", copy, "--", "ls", "-d", "/mnt/doc") == "/mnt/doc\n"


@pytest.mark.row("B5")
def test_b5_nothing_is_created_through_a_bind(fails: Fails, world_tmp: Path, image: Path, user: str) -> None:
    host = world_tmp / "mine"
    host.mkdir(exist_ok=True)
    os.chown(host, settings(user)["user"], -1)  # type: ignore[arg-type]
    line = fails(31, "-W", "-b", f"{host}:/mnt", "-b", "/usr:/mnt/new", image, "--", "true")
    assert "is bound from the host; nothing is created there" in line
    line = fails(31, "-W", "-b", "/usr:/tmp/slurm_ch-new", image, "--", "true")
    assert "is bound from the host; nothing is created there" in line
    # ch-run leaves an empty file there.
    line = fails(31, "-W", "-b", "/etc/hostname:/tmp/slurm_ch-new", image, "--", "true")
    assert "is bound from the host; nothing is created there" in line
    line = fails(31, "-W", "-b", f"{host}:/mnt", "-b", "/etc/passwd:/mnt/new", image, "--", "true")
    assert "is bound from the host; nothing is created there" in line
    assert list(host.iterdir()) == []
    assert not Path("/tmp/slurm_ch-new").exists()


@pytest.mark.row("B7")
def test_b7_binds_are_recursive(good: Good, image: Path, world_tmp: Path) -> None:
    outer = world_tmp / "outer"
    (outer / "inner").mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", outer / "inner"], check=True)
    try:
        (outer / "inner/file").write_text("deep\n")
        assert good("-b", f"{outer}:/mnt", image, "--", "cat", "/mnt/inner/file") == "deep\n"
    finally:
        subprocess.run(["umount", outer / "inner"], check=True)


def test_bind_of_a_file_at_a_directory(fails: Fails, image: Path) -> None:
    line = fails(31, "-b", "/etc/hostname:/mnt", image, "--", "true")
    assert line.endswith("can't bind /etc/hostname at /mnt: one is a directory, the other is not")
