# SPDX-License-Identifier: Apache-2.0
"""Places that a read-only image lacks: made for what is mounted there, and nowhere else."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command import CH_RUN
from tests.small_images import make_image, squash

from .conftest import mountinfo, settings

Good = Callable[..., str]
Fails = Callable[..., str]

DIRECTORY, SQUASHFS = "directory", "SquashFS"
both = pytest.mark.parametrize("kind", [DIRECTORY, SQUASHFS])


def both_forms(root: Path, user: str) -> dict[str, Path]:
    subprocess.run(["chown", "-hR", f"{user}:", root], check=True)
    return {DIRECTORY: root, SQUASHFS: squash(root, root.with_suffix(".sqfs"))}


@pytest.fixture(scope="module")
def links(world_tmp: Path, user: str) -> dict[str, Path]:
    """An image with links of many kinds, some of them absolute, some leading nowhere."""
    root = make_image(world_tmp / "image-with-links", "links")
    (root / "run").mkdir()
    for name, target in (
        ("var/run", "/run"), ("data", "/scratch/data"), ("chain", "/var/run/../run/./chained"), ("file", "/etc/made/file"),
    ):  # fmt: skip
        (root / name).symlink_to(target)
    (root / "etc/resolv.conf").unlink()
    (root / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    return both_forms(root, user)


@pytest.fixture(scope="module")
def scratch(world_tmp: Path, user: str) -> dict[str, Path]:
    """As `FROM scratch` makes an image: a program."""
    root = world_tmp / "from-scratch"
    root.mkdir()
    shutil.copy("/bin/busybox", root / "busybox")
    return both_forms(root, user)


@both
@pytest.mark.row("B4")
def test_absolute_links_lead_within_the_image(good: Good, links: dict[str, Path], kind: str, world_tmp: Path) -> None:
    source = world_tmp / "linked-to"
    source.write_text("bound\n")
    for place, real in (
        ("/var/run/there", "/run/there"), ("/data", "/scratch/data"), ("/chain", "/run/chained"), ("/file", "/etc/made/file"),
        ("/data/below", "/scratch/data/below"), ("/var/run/./../run//x", "/run/x"),
    ):  # fmt: skip
        out = good("-b", f"{source}:{place}", links[kind], "--", "cat", real, place)
        assert out == "bound\n" * 2, place
    # Also where the image has what the link leads to.
    assert good("-b", "/usr/share:/var/run", links[kind], "--", "ls", "-d", "/run/doc") == "/run/doc\n"


@both
def test_resolv_conf_is_made_where_its_link_leads(good: Good, links: dict[str, Path], kind: str) -> None:
    assert good(links[kind], "--", "cat", "/etc/resolv.conf") == Path("/etc/resolv.conf").read_text()


@both
def test_an_image_of_one_program(good: Good, scratch: dict[str, Path], kind: str) -> None:
    assert good(scratch[kind], "--", "/busybox", "ls", "/").split() == ["busybox", "dev", "etc", "proc", "sys", "tmp"]
    out = good(
        scratch[kind],
        "--",
        "/busybox",
        "sh",
        "-c",
        "/busybox id -un; /busybox cat /etc/resolv.conf; echo x > /tmp/made && /busybox rm /tmp/made",
    )
    assert out == "chuser\n" + Path("/etc/resolv.conf").read_text()
    assert good("-t", scratch[kind], "--", "/busybox", "ls", "-A", "/tmp") == ""
    assert good("--no-passwd", scratch[kind], "--", "/busybox", "ls", "/etc").split() == ["hosts", "resolv.conf"]
    assert [path.name for path in scratch[DIRECTORY].iterdir()] == ["busybox"]


@both
@pytest.mark.row("T2")
def test_what_is_made_is_as_read_only_as_the_image(
    good: Good, run: Good, scratch: dict[str, Path], kind: str, image_dir: Path
) -> None:
    for image, words in ((scratch[kind], []), (image_dir, ["-b", "/usr/share:/new/a", "-b", "/usr/share:/opt/new"])):
        name = "busybox" if image != image_dir else "bin/busybox"
        done = run(
            *words, image, "--", f"/{name}", "sh", "-c", f"for d in / /new /opt /etc; do /{name} touch $d/x; done"
        )
        assert done.returncode == 1  # type: ignore[attr-defined]
        assert done.stderr.count("Read-only file system") == (4 if image == image_dir else 2)  # type: ignore[attr-defined]
        mounts = mountinfo(good(*words, image, "--", f"/{name}", "cat", "/proc/self/mountinfo"))
        assert mounts["/"][1:3] == ["ro,nosuid,nodev,relatime", "tmpfs"]


@both
@pytest.mark.row("B3")
def test_many_places_and_what_was_there_before(good: Good, links: dict[str, Path], kind: str, world_tmp: Path) -> None:
    source = world_tmp / "one-of-many"
    source.write_text("bound\n")
    places = ("/a", "/b/c/d", "/opt/e", "/opt/f/g", "/usr/bin/h", "/var/i", "/var/spool/j", "/etc/k", "/l", "/bin/m")
    words = [word for place in places for word in ("-b", f"{source}:{place}")]
    out = good(
        *words,
        links[kind],
        "--",
        "sh",
        "-c",
        f"cat {' '.join(places)} /marker; readlink /var/run; ls /dev/null; grep -c chuser /etc/passwd",
    )
    assert out == "bound\n" * len(places) + "links\n/run\n/dev/null\n1\n"
    # A later bind may be below an earlier one's place, where the image is still in sight.
    out = good("-b", "/usr/share:/p/q/r", "-b", f"{source}:/p/q/s", links[kind], "--", "ls", "/p/q")
    assert out.split() == ["r", "s"]


@pytest.mark.row("B5")
def test_nothing_is_made_in_what_is_bound(fails: Fails, image_sqfs: Path, world_tmp: Path, user: str) -> None:
    mine = world_tmp / "nothing-made-here"
    mine.mkdir()
    shutil.chown(mine, user)
    line = fails(31, "-b", f"{mine}:/mnt", "-b", "/usr:/mnt/a/b", image_sqfs, "--", "true")
    assert line == (
        "--bind=/usr:/mnt/a/b: can't bind: /mnt/a/b: /mnt is bound from the host; nothing is created there: make it there"
        " yourself, or choose another destination"
    )
    assert list(mine.iterdir()) == []


def test_places_that_can_not_be_made(fails: Fails, image_sqfs: Path) -> None:
    for place, why in (
        ("/marker/x", "can't create /marker/x: Not a directory"),
        ("/none/../x", "can't create a directory below '..': /none/../x"),
    ):
        assert fails(31, "-b", f"/usr:{place}", image_sqfs, "--", "true") == f"--bind=/usr:{place}: can't bind: {why}"


def test_a_private_tmp_has_places_too(good: Good, image: Path) -> None:
    assert good("-t", "-b", "/usr/share:/tmp/a/b", image, "--", "ls", "-d", "/tmp/a/b/doc") == "/tmp/a/b/doc\n"


@both
def test_the_image_is_seen_itself(good: Good, links: dict[str, Path], kind: str) -> None:
    """Reading it through an overlay is slower: only large directories that lack a place have one."""
    words = ["-b", "/usr/share:/new", "-b", "/usr/share:/opt/new", "-b", "/etc/hostname:/bin/new"]
    mounts = mountinfo(good(*words, links[kind], "--", "cat", "/proc/self/mountinfo"))
    assert [point for point, fields in mounts.items() if fields[2] == "overlay"] == ["/bin"]
    look = "stat -c '%n %a %F' /* /opt /etc/passwd 2>/dev/null | grep -v '^/\\(new\\|dev\\|proc\\|sys\\|tmp\\) '"
    assert good(*words[:4], links[kind], "--", "sh", "-c", look) == good(links[kind], "--", "sh", "-c", look)


def test_an_image_on_a_read_only_file_system(fails: Fails, good: Good, image_dir: Path, world_tmp: Path) -> None:
    root = world_tmp / "mounted-read-only"
    root.mkdir()
    subprocess.run(["mount", "--bind", image_dir, root], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", root], check=True)
        line = fails(64, "-w", root, "--", "true")
        assert line == f"--write: {root} is on a read-only file system here; write-fake keeps changes in memory instead"
        words = ["-b", "/usr/share:/new/place", root, "--", "ls", "-d", "/new/place/doc"]
        assert good(*words) == good("-W", *words) == "/new/place/doc\n"
    finally:
        subprocess.run(["umount", root], check=True)


@both
def test_ch_run_makes_no_places(scratch: dict[str, Path], kind: str, user: str, world_tmp: Path) -> None:
    """Under its name as with the real one: a read-only image has all places, or it is an error."""

    def ch_run(*words: object) -> tuple[int, str, str]:
        done = subprocess.run([CH_RUN, *map(str, words)], check=False, capture_output=True, text=True, **settings(user))  # type: ignore[call-overload]
        return done.returncode, done.stdout, done.stderr

    root = make_image(world_tmp / f"all-but-one-{kind}")
    (root / "etc/hosts").unlink()
    image = both_forms(root, user)[kind]
    code, out, said = ch_run("-b/usr/bin:/a/place", image, "--", "true")
    assert (code, out) == (31, "")
    assert "--bind=/usr/bin:/a/place: can't bind: " in said, said
    assert said.count("\n") == 1
    assert ch_run("-W", "-b/usr/bin:/a/place", image, "--", "ls", "-d", "/a/place") == (0, "/a/place\n", "")
    # What is bound unasked, and isn't required, is passed over.
    assert ch_run(image, "--", "sh", "-c", "test -e /etc/hosts || echo none") == (0, "none\n", "")
    for place in ("tmp", "etc/passwd", "proc"):
        gone = root / place
        gone.rename(root / "gone")
        image = both_forms(root, user)[kind]
        code, out, said = ch_run(image, "--", "/bin/true")
        (root / "gone").rename(gone)
        assert (code, out, said.count("\n")) == (31, "", 1)
        assert f"can't bind: destination not found: /{place}\n" in said
    assert ch_run(scratch[kind], "--", "/busybox", "true")[0] == 31
