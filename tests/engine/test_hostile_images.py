# SPDX-License-Identifier: Apache-2.0
"""Hostile images: links, FIFOs, devices, setuid files, long and odd names."""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.small_images import make_image, squash

from .conftest import SLURM_CH, Run, settings, tree

Fails = Callable[..., str]

# `make chaos` tries every case, `make test` those that found something.
FULL = os.environ.get("CHAOS") == "full"

SEED = int(os.environ.get("SEED", "61"))

# A container that isn't ready by then hangs.
SECONDS = 10


@pytest.fixture
def evil(world_tmp: Path, user: str) -> Iterator[Path]:
    """A directory image of the test's own, to be spoilt; it belongs to the user."""
    root = make_image(world_tmp / "evil", "evil")
    yield root
    subprocess.run(["rm", "-rf", str(root)], check=True)


def spoil(place: Path, what: str) -> None:
    """Put a link (`-> TARGET`), a FIFO, a device or a directory in the place of what is there."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
    if what.startswith("-> "):
        place.symlink_to(what[3:])
    elif what == "FIFO":
        os.mkfifo(place, 0o666)
    elif what == "device":
        os.mknod(place, stat.S_IFBLK | 0o666, os.makedev(7, 250))
    elif what == "directory":
        place.mkdir()
    else:
        assert what == "socket"
        os.mknod(place, stat.S_IFSOCK | 0o666)


TARGETS = [
    "-> /",
    "-> ..",
    "-> ../../../../..",
    "-> /etc",
    "-> /proc/1/root",
    "-> dev",
    "-> /nonexistent",
    "-> ../image/mnt",
]
PLACES = ["dev", "proc", "tmp", "etc", "root", "sys"]
TRIED = [*TARGETS, "FIFO", "device"] if FULL else ["-> ..", "-> ../image/mnt", "FIFO"]
FILES = ["etc/passwd", "etc/group", "etc/hosts"]


@pytest.mark.parametrize("form", ["directory", "SquashFS"])
@pytest.mark.parametrize("what", TRIED)
def test_nothing_of_the_hosts_through_an_odd_place(run: Run, evil: Path, world_tmp: Path, what: str, form: str) -> None:
    """It runs, or fails with one line; what is seen is the image and what was bound."""
    for place in PLACES if FULL else ["dev"]:
        spoil(evil / place, what)
        (evil / "image/mnt").mkdir(parents=True, exist_ok=True)
        image = evil if form == "directory" else squash(evil, world_tmp / "evil.sqfs")
        show = "cat /proc/self/mountinfo; for d in / /mnt /image/mnt; do ls -a $d; done; cat /marker"
        done = run(image, "--", "/bin/busybox", "sh", "-c", show, timeout=SECONDS)
        if done.returncode == 31:
            assert done.stderr.count("\n") == 1, done.stderr
            assert done.stderr.startswith("slurm-ch: error: "), done.stderr
        else:
            # Where the link makes /bin or /proc vanish below a bind, the command's own words count.
            assert "slurm-ch: error" not in done.stderr or done.returncode in (126, 127), done.stderr
            assert "scratch" not in done.stdout.split(), done.stdout
            ours = [line for line in done.stdout.splitlines() if "slurm_ch" in line and " - tmpfs " in line]
            # What lies over a directory of the image in which a place had to be made is smaller than the staging.
            staging = [line for line in ours if ",size=1024k," not in line or line.split()[5].split(",")[0] != "ro"]
            assert {line.split()[3] for line in staging} <= {
                "/passwd",
                "/group",
                "/passwd//deleted",
                "/group//deleted",
            }, staging
        subprocess.run(["rm", "-rf", str(evil)], check=True)
        make_image(evil, "evil")
        (world_tmp / "evil.sqfs").unlink(missing_ok=True)


@pytest.mark.parametrize("what", [*TRIED, "device", "socket", "directory"])
def test_our_files_replace_nothing_of_the_hosts(run: Run, evil: Path, what: str) -> None:
    before = {path: Path("/", path).read_bytes() for path in FILES}
    for place in FILES:
        spoil(evil / place, what)
        done = run(evil, "--", "true", timeout=SECONDS)
        assert done.returncode == 0 or (done.returncode, done.stderr.count("\n")) == (31, 1), done
        (evil / place).rmdir() if what == "directory" else (evil / place).unlink()
        (evil / place).touch()
    assert {path: Path("/", path).read_bytes() for path in FILES} == before


@pytest.mark.parametrize("target", ["/", "..", "../../../../../etc", "self", "/nonexistent/x", "/proc/self/root/etc"])
def test_a_users_bind_does_not_follow_an_escaping_link(run: Run, evil: Path, target: str) -> None:
    (evil / "mnt/self").symlink_to(target)
    before = sorted(os.listdir("/etc"))
    for destination in ("/mnt/self", "/mnt/self/x", "/mnt/self/../x"):
        for options in ((), ("-W",)) if FULL else (("-W",),):
            done = run(*options, "-b", f"/usr:{destination}", evil, "--", "cat", "/marker", timeout=SECONDS)
            assert done.stdout in ("", "evil\n")
            assert done.returncode in (0, 31), done
            assert done.stderr.count("\n") == (done.returncode == 31), done
    assert sorted(os.listdir("/etc")) == before
    assert not Path("/x").exists()


@pytest.mark.parametrize(
    "what", ["FIFO", "device", "socket", "directory", "-> /dev/zero", "-> environment", "-> /proc/kmsg"]
)
def test_an_environment_file_that_never_ends(fails: Fails, evil: Path, what: str) -> None:
    (evil / "ch").mkdir()
    spoil(evil / "ch/environment", what)
    line = fails(31, "--set-env=/ch/environment", evil, "--", "true", timeout=SECONDS)
    assert line.startswith("--set-env=/ch/environment: can't read environment file: ")


def test_an_environment_file_of_the_hosts_that_never_ends(
    fails: Fails, image_sqfs: Path, world_tmp: Path, user: str
) -> None:
    fifo = world_tmp / "env-fifo"
    os.mkfifo(fifo, 0o666)
    fifo.chmod(0o666)
    for path in (fifo, "/dev/zero", "/dev/tty"):
        line = fails(31, f"--set-env={path}", image_sqfs, "--", "true", timeout=SECONDS, start_new_session=True)
        assert line.startswith(f"--set-env={path}: can't read environment file: "), line
    huge = world_tmp / "env-huge"
    with huge.open("wb") as file:
        file.truncate(1 << 40)
    assert fails(64, f"--set-env={huge}", image_sqfs, "--", "true", timeout=SECONDS).startswith(
        f"--set-env={huge}: environment file is larger"
    )
    # The shell's process substitution is a pipe too, and has always worked.
    line = f"{SLURM_CH} run --set-env=<(sleep 0.1; echo SUBSTITUTED=yes) {image_sqfs} -- env"
    done = subprocess.run(["bash", "-c", line], check=True, capture_output=True, text=True, **settings(user))  # type: ignore[call-overload]
    assert "SUBSTITUTED=yes" in done.stdout.splitlines()
    fifo.unlink()
    huge.unlink()


def test_an_image_that_is_a_fifo(fails: Fails, world_tmp: Path) -> None:
    fifo = world_tmp / "image-fifo"
    os.mkfifo(fifo, 0o666)
    fifo.chmod(0o666)
    assert fails(31, fifo, "--", "true", timeout=SECONDS) == f"unknown image type: {fifo}"
    fifo.unlink()


def test_setuid_and_devices_are_of_no_use(run: Run, evil: Path, world_tmp: Path, user: str) -> None:
    for name, uid in (("root", 0), ("other", 1)):
        program = evil / "opt" / name / "id"
        program.parent.mkdir()
        shutil.copy("/bin/busybox", program)
        os.chown(program, uid, uid)
        program.chmod(0o6755)
    os.mknod(evil / "opt/disk", stat.S_IFBLK | 0o666, os.makedev(7, 250))
    os.mknod(evil / "opt/mem", stat.S_IFCHR | 0o666, os.makedev(1, 1))
    ids = f"uid={settings(user)['user']}"
    for image in (evil, squash(evil, world_tmp / "evil.sqfs")):
        for name in ("root", "other"):
            done = run(image, "--", f"/opt/{name}/id")
            assert done.stdout.split("(")[0] == ids, done
            assert "euid" not in done.stdout
        for options in ((), ("-W",), ("-w",) if image is evil else ()):
            done = run(*options, image, "--", "sh", "-c", "cat /opt/mem; cat /opt/disk")
            assert (done.stdout, done.stderr.count("Permission denied")) == ("", 2), done
    (world_tmp / "evil.sqfs").unlink()


@pytest.mark.parametrize("form", ["directory", "SquashFS"])
def test_long_paths_and_odd_names(run: Run, evil: Path, world_tmp: Path, form: str) -> None:
    deep = "/".join(["d" * 20] * 128)
    odd = "new\nline \x1b[31m\\x %n %s \udcff"
    (evil / "mnt" / odd).mkdir()
    os.makedirs(evil / "mnt" / deep)
    image = evil if form == "directory" else squash(evil, world_tmp / "evil.sqfs")
    for name in (deep, odd):
        done = run(
            "-b",
            f"/usr/share:/mnt/{name}",
            "-c",
            f"/mnt/{name}" if name == deep else "/",
            image,
            "--",
            "ls",
            f"/mnt/{name}",
        )
        if name == odd:  # newlines are refused, and shown as what they are
            assert (done.returncode, done.stderr.count("\n")) == (64, 1), done
            assert "\x1b" not in done.stderr
            continue
        assert done.returncode == 0, done
        assert "doc" in done.stdout.split()
    renamed = world_tmp / f"{odd}.img"
    if form == "directory":
        evil.rename(renamed)
        done = run(renamed, "--", "cat", "/marker")
        renamed.rename(evil)
    else:
        image.rename(renamed)
        done = run(renamed, "--", "cat", "/marker")
        renamed.unlink()
    assert (done.returncode, done.stdout) == (0, "evil\n"), done


@pytest.mark.parametrize("place", ["etc", "mnt/a/b", "mnt/merge"])
def test_a_link_and_a_directory_that_change_places(
    run: Run, evil: Path, world_tmp: Path, user: str, place: str
) -> None:
    """Somebody who may write to the image races every set-up: nothing of the host's is ever covered or made."""
    entry = settings(user)
    (evil / "mnt/a/b").mkdir(parents=True)
    (evil / "mnt/merge").mkdir()
    trap = world_tmp / "trap"
    trap.mkdir()
    subprocess.run(["chown", "-hR", f"{user}:", str(evil), str(trap)], check=True)
    here, away = evil / place, evil / f"{place}.away"
    flip = (
        "import os, sys\n"
        f"here, away = {str(here)!r}, {str(away)!r}\n"
        "while True:\n"
        "    os.rename(here, away); os.symlink(sys.argv[1], here); os.unlink(here); os.rename(away, here)\n"
    )
    racer = subprocess.Popen(
        ["/usr/bin/python3", "-I", "-c", flip, str(trap)], user=entry["user"], group=entry["group"]
    )  # type: ignore[arg-type]
    try:
        outcomes = set()
        for _ in range(25 if FULL else 5):
            options = (
                ("-W", "-b", f"/usr/share/doc:/{place}/x/y") if place != "etc" else ("-b", "/etc/hostname:/etc/hosts")
            )
            done = run(*options, evil, "--", "cat", "/marker", timeout=SECONDS)
            assert done.returncode in (0, 31), done
            assert done.stderr.count("\n") == (done.returncode == 31), done
            outcomes.add(done.returncode)
            assert racer.poll() is None
            assert list(trap.iterdir()) == []
    finally:
        racer.kill()
        racer.wait()
        shutil.rmtree(trap)


def test_a_damaged_archive(run: Run, evil: Path, world_tmp: Path) -> None:
    """Whatever the server does with it, even if it dies: the command ends, and nothing stays."""
    dice = random.Random(SEED)
    for name in ("big", "mnt/other", "mnt/third"):
        (evil / name).write_text(name * 3000)
    archive = world_tmp / "damaged.sqfs"
    # Plain metadata: else most damage is found by its decompressor.
    command = [
        "mksquashfs",
        str(evil),
        str(archive),
        "-quiet",
        "-no-progress",
        "-noappend",
        "-all-root",
        "-noI",
        "-noX",
    ]
    subprocess.run([*command, "-b", "4096"], check=True, capture_output=True)
    good = archive.read_bytes()
    tables = len(good) - 4096
    codes = set()
    for _ in range(50 if FULL else 8):
        bad = bytearray(good)
        for _ in range(dice.randint(1, 12)):
            place = dice.choice([dice.randrange(96), dice.randrange(len(bad)), dice.randrange(tables, len(bad))])
            bad[place] = dice.choice([0, 0xFF, 0x80, dice.randrange(256)])
        if dice.randrange(4) == 0:
            del bad[dice.randrange(len(bad)) :]
        archive.write_bytes(b"hsqs" + bad[4:])
        done = run(
            archive,
            "--",
            "sh",
            "-c",
            "find / -xdev -type f | head -300 | xargs cat | wc -c",
            timeout=60,
            errors="replace",
        )
        codes.add(done.returncode)
        assert done.returncode != 64, done
        if done.returncode == 31:
            assert done.stderr.count("\n") == 1, done
    assert 31 in codes
    archive.unlink()


def test_an_image_is_left_as_it_was(run: Run, evil: Path) -> None:
    before = tree(evil)
    for options in ((), ("-W",), ("--home",), ("-t",)):
        run(*options, evil, "--", "true")
    assert tree(evil) == before
