# SPDX-License-Identifier: Apache-2.0
"""Rows of the table of behaviour: the image, the namespaces, the tree. As an ordinary user, with both kinds of images."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Run, mountinfo, settings

Good = Callable[..., str]
Fails = Callable[..., str]

MOUNTS = ("--", "cat", "/proc/self/mountinfo")


# ---- Image reference ----


@pytest.mark.row("IMAGE", "--storage", "I1")
def test_i1_name_before_path(good: Good, world_tmp: Path, image_dir: Path, other_sqfs: Path, user: str) -> None:
    storage = world_tmp / "names"
    (storage / "img").mkdir(parents=True, exist_ok=True)
    (storage / "img/alpine%x+3.9").symlink_to(image_dir)
    assert good("-s", storage, "alpine/x:3.9", "--", "cat", "/marker") == "one\n"
    env = {**settings(user)["env"], "CH_IMAGE_STORAGE": str(storage)}  # type: ignore[dict-item]
    assert good("alpine/x:3.9", "--", "cat", "/marker", env=env) == "one\n"


@pytest.mark.row("I1a")
def test_i1a_relative_path_is_the_working_directorys(good: Good, world_tmp: Path, image_sqfs: Path) -> None:
    assert good("image.sqfs", "--", "cat", "/marker", cwd=world_tmp) == "one\n"
    assert good("image", "--", "cat", "/marker", cwd=world_tmp) == "one\n"


@pytest.mark.row("I1")
def test_i1_a_path_of_any_length(good: Good, world_tmp: Path, image_sqfs: Path) -> None:
    """fsconfig(2) takes 255 bytes; of a longer path the mount table shows the end."""
    for length in (255, 256, 1500):
        place = world_tmp / "long" / ("x" * 200)
        while len(str(place)) < length - 250:
            place /= "y" * 200
        place.mkdir(parents=True, exist_ok=True)
        path = place / ("é" * 10 + "z" * (length - len(os.fsencode(place)) - 21))
        os.link(image_sqfs, path)
        assert len(os.fsencode(path)) == length
        out = good(path, "--", "sh", "-c", "cat /marker; grep ' / / ' /proc/self/mountinfo").splitlines()
        shown = out[1].split(" - ")[1].split()[1]
        assert (out[0], shown[-2:], len(os.fsencode(shown))) == ("one", path.name[-2:], 255)


@pytest.mark.row("I2")
def test_i2_each_failure_has_its_own_message(fails: Fails, world_tmp: Path) -> None:
    short = world_tmp / "short"
    short.write_bytes(b"hsq")
    other = world_tmp / "neither"
    other.write_bytes(b"x" * 100)
    assert fails(31, "/nonexistent", "--", "true") == "can't stat image: /nonexistent: No such file or directory"
    assert fails(31, "/etc/shadow", "--", "true") == "can't open image: /etc/shadow: Permission denied"
    assert fails(31, short, "--", "true") == f"can't read image: {short}: shorter than 4 bytes"
    assert fails(31, other, "--", "true") == f"unknown image type: {other}"
    assert fails(31, "/dev/null", "--", "true") == "unknown image type: /dev/null"


@pytest.mark.row("I2")
def test_i2_squashfs_that_is_none(fails: Fails, world_tmp: Path) -> None:
    broken = world_tmp / "garbage.sqfs"
    broken.write_bytes(b"hsqs" + b"\xff" * 8192)
    line = fails(31, broken, "--", "true")
    assert line.startswith(f"can't read image: {broken}")


# ---- Namespaces and identity ----


@pytest.mark.row("N1")
def test_n1_own_namespaces_and_own_ids(good: Good, image: Path, user: str) -> None:
    out = good(
        image,
        "--",
        "sh",
        "-c",
        "readlink /proc/self/ns/user; readlink /proc/self/ns/mnt; id -u; id -g; cat /proc/self/uid_map",
    )
    user_ns, mount_ns, uid, gid, uid_map = out.splitlines()
    assert user_ns != os.readlink("/proc/self/ns/user")
    assert mount_ns != os.readlink("/proc/self/ns/mnt")
    entry = settings(user)
    assert (int(uid), int(gid)) == (entry["user"], entry["group"])
    # Seen from within, the id's parent is the outer namespace's 0.
    assert uid_map.split() == [str(entry["user"]), "0", "1"]


@pytest.mark.parametrize(("uid", "gid"), [(0, 0), (65534, 65534), (12345, 54321)])
@pytest.mark.row("--uid", "N2")
def test_n1_n2_wanted_ids(good: Good, image: Path, uid: int, gid: int) -> None:
    out = good(
        "-u", uid, "-g", gid, image, "--", "sh", "-c", "id -u; id -g; cat /proc/self/setgroups; cat /proc/self/gid_map"
    )
    assert out.split() == [str(uid), str(gid), "deny", str(gid), "0", "1"]


@pytest.mark.row("N4")
def test_n4_no_new_privileges(good: Good, image: Path) -> None:
    assert "NoNewPrivs:\t1\n" in good(image, "--", "cat", "/proc/self/status")


@pytest.mark.row("N5")
def test_n5_command_is_as_it_would_be(good: Good, image: Path, user: str) -> None:
    def prepare() -> None:
        os.umask(0o037)
        resource.setrlimit(resource.RLIMIT_NOFILE, (123, 456))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])

    show = "grep -E '^(Umask|Sig[^Q]|Groups)' /proc/self/status; cat /proc/self/limits; ls /proc/self/fd"
    entry = settings(user)
    groups = [entry["group"], 27, 44]
    common = {**entry, "preexec_fn": prepare, "extra_groups": groups}
    bare = subprocess.run(
        ["/bin/busybox", "sh", "-c", show],
        check=True,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        **common,  # type: ignore[call-overload]
    ).stdout
    inside = good(image, "--", "sh", "-c", show, preexec_fn=prepare, extra_groups=groups)

    def without_groups(text: str) -> list[str]:
        return [line.rstrip() for line in text.splitlines() if not line.startswith("Groups:")]

    assert without_groups(inside) == without_groups(bare)
    # Unmapped groups have no number inside, but they are there.
    (line,) = [line for line in inside.splitlines() if line.startswith("Groups:")]
    assert sorted(line.split()[1:]) == sorted([str(entry["group"]), "65534", "65534"])


def test_n5_environment_has_nothing_of_pythons(good: Good, image: Path) -> None:
    """In the C locale, Python sets LC_CTYPE for itself and its children."""
    ours = {f"CH_RUNNING={image}", "HOME=/root", "PWD=/", "PATH=/bin"}
    assert set(good(image, "--", "env", env={"PATH": "/bin"}).splitlines()) == ours
    own = good(image, "--", "env", env={"PATH": "/bin", "LC_CTYPE": "C.UTF-8"}).splitlines()
    assert set(own) == {*ours, "LC_CTYPE=C.UTF-8"}


@pytest.mark.row("N5")
def test_n5_supplementary_groups_count(good: Good, image: Path, world_tmp: Path, user: str) -> None:
    secret = world_tmp / "group-only"
    secret.write_text("for the group\n")
    os.chown(secret, 0, 27)
    secret.chmod(0o640)
    entry = settings(user)
    assert good(image, "--", "cat", secret, extra_groups=[entry["group"], 27]) == "for the group\n"


@pytest.mark.row("N5")
def test_n5_no_descriptor_leaks(good: Good, image: Path) -> None:
    show = "for f in /proc/$$/fd/*; do echo ${f##*/}; done"
    bare = subprocess.run(["/bin/busybox", "sh", "-c", show], check=True, capture_output=True, text=True).stdout
    assert good(image, "--", "sh", "-c", show) == bare
    assert good("--join-ct=1", "--join-tag=leaks", image, "--", "sh", "-c", show) == bare


# ---- The tree ----


@pytest.mark.row("T1")
def test_t1_t2_root_is_private_and_read_only(good: Good, image: Path, run: Run) -> None:
    root = mountinfo(good(image, *MOUNTS))["/"]
    assert root[1].split(",")[0] == "ro"
    done = run(image, "--", "touch", "/new")
    assert done.returncode == 1
    assert "Read-only file system" in done.stderr


@pytest.mark.row("T2")
def test_t2_other_flags_are_kept(good: Good, world_tmp: Path, image_dir: Path) -> None:
    point = world_tmp / "flags"
    point.mkdir()
    subprocess.run(["mount", "--bind", image_dir, point], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,nosuid,nodev,noatime", point], check=True)
        options = set(mountinfo(good(point, *MOUNTS))["/"][1].split(","))
        assert {"ro", "nosuid", "nodev", "noatime"} <= options
    finally:
        subprocess.run(["umount", point], check=True)


@pytest.mark.row("--write")
def test_write_reaches_the_directory(run: Run, good: Good, world_tmp: Path, image_dir: Path, user: str) -> None:
    copy = world_tmp / "writeable"
    subprocess.run(["cp", "-a", image_dir, copy], check=True)
    good("-w", copy, "--", "sh", "-c", "echo x > /new")
    assert (copy / "new").read_text() == "x\n"


@pytest.mark.row("--write")
def test_write_is_refused_where_it_cannot_be(fails: Fails, image_sqfs: Path) -> None:
    assert fails(64, "-w", image_sqfs, "--", "true").startswith("--write: a SquashFS image can't be written to")


@pytest.mark.row("T2")
def test_t1_the_served_image_is_read_only_itself(good: Good, image_sqfs: Path) -> None:
    """Not only the mount is read-only: else each read would ask the server for a file's attributes again."""
    root = mountinfo(good(image_sqfs, *MOUNTS))["/"]
    assert root[2] == "fuse.slurm_ch"
    assert root[4].split(",")[0] == "ro"


@pytest.mark.row("--write-fake", "T3")
def test_t3_write_fake(good: Good, image: Path) -> None:
    out = good(
        "-W",
        image,
        "--",
        "sh",
        "-c",
        "echo x > /new; rm /marker; mkdir /a; cat /new; ls -d /a /marker 2>/dev/null; true",
    )
    assert out == "x\n/a\n"
    root = mountinfo(good("-W", image, *MOUNTS))["/"]
    assert root[2] == "overlay"
    assert {"userxattr", "fsync=volatile"} <= set(root[4].split(",")) or "volatile" in root[4]


@pytest.mark.row("--write-fake", "T3")
def test_t3_size_is_a_limit(good: Good, run: Run, image: Path) -> None:
    assert good("-W1M", image, "--", "df", "-k", "/").splitlines()[1].split()[1] == "1024"
    done = run("--write-fake=1M", image, "--", "sh", "-c", "dd if=/dev/zero of=/big bs=64k count=32 || wc -c < /big")
    assert 0 < int(done.stdout) < 1 << 20


@pytest.mark.row("T3")
def test_t3_image_below_srv_works(good: Good, image_sqfs: Path, world_tmp: Path) -> None:
    link = Path(f"/srv/{world_tmp.name}.sqfs")
    link.symlink_to(image_sqfs)
    try:
        assert good("-W", link, "--", "cat", "/marker") == "one\n"
        assert good("-W", "-b", f"{link}:/mnt/x", image_sqfs, "--", "head", "-c", "4", "/mnt/x") == "hsqs"
    finally:
        link.unlink()


@pytest.mark.row("T4")
def test_t4_default_binds_are_read_only(good: Good, image: Path) -> None:
    mounts = mountinfo(good(image, *MOUNTS))
    optional = [name for name in ("/etc/hosts", "/etc/resolv.conf", "/etc/machine-id") if Path(name).exists()]
    assert optional
    for point in ("/dev", "/proc", "/sys", *optional):
        assert mounts[point][1].split(",")[0] == "ro", point
    assert "/opt/cray/xpmem" not in mounts
    # What lies below keeps its own flags: MPI's shared memory is there.
    assert (
        good(
            image,
            "--",
            "sh",
            "-c",
            "echo x > /dev/shm/slurm-ch-test; cat /dev/shm/slurm-ch-test; rm /dev/shm/slurm-ch-test",
        )
        == "x\n"
    )


@pytest.mark.row("T4")
def test_t4_required_and_optional(good: Good, world_tmp: Path, image_dir: Path) -> None:
    bare = world_tmp / "bare"
    (bare / "bin").mkdir(parents=True)
    os.link(image_dir / "bin/busybox", bare / "bin/cat")
    mounts = mountinfo(good(bare, *MOUNTS))
    for required in ("/dev", "/proc", "/sys", "/tmp", "/etc/passwd", "/etc/group", "/etc/resolv.conf", "/etc/hosts"):
        assert required in mounts
    assert "/etc/machine-id" not in mounts
    assert "/etc/machine-id" in mountinfo(good(image_dir, *MOUNTS))


@pytest.mark.row("--no-passwd", "T5")
def test_t5_passwd_and_group(good: Good, image: Path, user: str) -> None:
    entry = settings(user)
    out = good(image, "--", "cat", "/etc/passwd", "/etc/group")
    uid, gid = entry["user"], entry["group"]
    names = [line.split(":")[0] for line in out.splitlines()]
    assert names == ["root", "nobody", user, "root", "nogroup", user]
    assert f"{user}:x:{uid}:{gid}::/root:/bin/sh" in out
    assert good("--no-passwd", image, "--", "cat", "/etc/passwd") == ""
    dummy = good("-u", 12345, "-g", 54321, image, "--", "cat", "/etc/passwd", "/etc/group")
    assert "charlie:x:12345:54321:Charlie:/root:/bin/sh" in dummy
    assert "charliegroup:x:54321:" in dummy
    for number in (0, 65534):
        out = good("-u", number, "-g", number, image, "--", "cat", "/etc/passwd")
        assert [line.split(":")[2] for line in out.splitlines()].count(str(number)) == 1


@pytest.mark.row("--private-tmp", "T6")
def test_t6_tmp(good: Good, image: Path, world_tmp: Path, user: str) -> None:
    assert world_tmp.name in good(image, "--", "ls", "/tmp").split()
    assert (
        good("-t", image, "--", "sh", "-c", "ls -A /tmp; echo x > /tmp/x; cat /tmp/x; stat -c %a /tmp") == "x\n1777\n"
    )
    env = {**settings(user)["env"], "TMPDIR": str(world_tmp)}  # type: ignore[dict-item]
    assert good(
        image, "--", "sh", "-c", f"ls -d /tmp/{world_tmp.name}*/image.sqfs; echo ${{TMPDIR-unset}}", env=env
    ).split() == [
        f"{world_tmp}/image.sqfs",
        str(world_tmp),
    ]


@pytest.mark.row("--home", "T7")
def test_t7_home(good: Good, image: Path, user: str, fails: Fails) -> None:
    out = good("--home", image, "--", "sh", "-c", "echo $HOME; stat -c %i $HOME; echo x > /new; cat /new")
    assert out.split() == [f"/home/{user}", str(os.stat(f"/home/{user}").st_ino), "x"]
    assert "contradicts" in fails(64, "--home", "-w", image, "--", "true")


@pytest.mark.row("--bind", "T8")
def test_t8_binds_in_the_order_given(good: Good, image: Path, world_tmp: Path) -> None:
    for name in ("first", "second"):
        (world_tmp / name).mkdir(exist_ok=True)
        (world_tmp / name / "file").write_text(name)
    binds = ["-b", f"{world_tmp}/first:/mnt", "-b", f"{world_tmp}/second:/mnt"]
    assert good(*binds, image, "--", "cat", "/mnt/file") == "second"
    assert good(*binds[2:], *binds[:2], image, "--", "cat", "/mnt/file") == "first"
    assert good("-b", "/usr/share:/srv", image, "--", "ls", "-d", "/srv/doc") == "/srv/doc\n"
    # Without a destination it is the source's path.
    assert good("-b", "/opt", image, *MOUNTS).count(" /opt ") >= 1


@pytest.mark.row("T9")
def test_t9_nothing_of_the_host_stays(good: Good, image: Path) -> None:
    mounts = mountinfo(good(image, *MOUNTS))
    host = mountinfo(Path("/proc/self/mountinfo").read_text())
    ours = {"/", "/tmp", "/etc/hosts", "/etc/machine-id", "/etc/resolv.conf", "/etc/passwd", "/etc/group"}
    # Below /dev, /proc, /sys and /tmp is what is there on the host, and nothing else.
    assert set(mounts) - set(host) - ours == set()
    for point in ("/dev", "/proc", "/sys"):
        assert mounts[point][2:4] == host[point][2:4]
    assert good(image, "--", "sh", "-c", "cd /; cd ..; cat marker") == "one\n"


@pytest.mark.parametrize(
    "attempt",
    [
        "umount /",
        "umount -l /",
        "umount -l /dev",
        "mount -o remount,rw,bind /",
        "mount -o remount,rw,bind /proc",
        "umount /etc/passwd",
    ],
)
@pytest.mark.row("T9")
def test_t9_root_in_the_container_cannot_undo_it(run: Run, image: Path, attempt: str) -> None:
    done = run("-u0", "-g0", image, "--", "sh", "-c", f"{attempt} 2>/dev/null && echo done")
    assert done.stdout == "", done
