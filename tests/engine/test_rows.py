# SPDX-License-Identifier: Apache-2.0
"""Each row of the engine's behaviour, with real namespaces, as an ordinary user."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import leftovers

from .conftest import SLURM_CH, Run, mountinfo, settings

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
    """Where the locale is C, Python sets LC_CTYPE for itself and its children."""
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
    assert fails(64, "-w", image_sqfs, "--", "true").startswith("--write: SquashFS can't be written to")


@pytest.mark.row("T2")
def test_t1_the_served_image_is_read_only_itself(good: Good, image_sqfs: Path) -> None:
    """Not the mount alone: else each read asks the server for a file's attributes anew."""
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
    done = run("--write-fake=1M", image, "--", "dd", "if=/dev/zero", "of=/big", "bs=1M", "count=2")
    assert "No space left on device" in done.stderr


@pytest.mark.row("T3")
def test_t3_image_below_srv_works(good: Good, image_sqfs: Path) -> None:
    link = Path("/srv/slurm-ch-test.sqfs")
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
    (bare / "bin/cat").hardlink_to(image_dir / "bin/busybox")
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
    assert good(image, "--", "sh", "-c", "ls -d /tmp/*/image.sqfs; echo ${TMPDIR-unset}", env=env).split() == [
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


# ---- Binds ----


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


# ---- Join by pid ----


@pytest.mark.row("--join-pid", "J3")
def test_j3_join_pid(good: Good, image: Path, user: str, fails: Fails) -> None:
    first = subprocess.Popen(
        [SLURM_CH, "run", str(image), "--", "sh", "-c", "echo $$; readlink /proc/self/ns/mnt; cat"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **settings(user),  # type: ignore[call-overload]
    )  # fmt: skip
    pid, namespace = first.stdout.readline().strip(), first.stdout.readline().strip()
    out = good(
        f"--join-pid={pid}", image, "--", "sh", "-c", "readlink /proc/self/ns/mnt; cat /marker; echo $CH_RUNNING"
    )
    assert out.splitlines() == [namespace, "one", str(image)]
    first.communicate("", timeout=20)
    assert fails(31, f"--join-pid={pid}", image, "--", "true").startswith(f"join: no process {pid}")


# ---- Running the command ----


@pytest.mark.row("--cd", "R1")
def test_r1_working_directory(good: Good, image: Path, world_tmp: Path, fails: Fails) -> None:
    show = ["sh", "-c", "pwd; echo $PWD"]
    assert good("-c", "/srv", image, "--", *show) == "/srv\n/srv\n"
    assert good(image, "--", *show, cwd=world_tmp) == f"{world_tmp}\n" * 2
    assert fails(31, "-c", "/nonexistent", image, "--", "true") == "can't cd to /nonexistent: No such file or directory"


@pytest.mark.row("--env-no-expand", "R2")
def test_r2_rules_in_order_from_all_sources(good: Good, world_tmp: Path, image_dir: Path, user: str) -> None:
    host_file = world_tmp / "env"
    host_file.write_text("F1=from file\n\nF2='quoted'\nF3=$F1\n")
    copy = world_tmp / "with-environment"
    subprocess.run(["cp", "-a", image_dir, copy], check=True)
    (copy / "ch").mkdir()
    (copy / "ch/environment").write_text("INNER=from image\n")
    env = {**settings(user)["env"], "KEEP": "1", "DROP1": "1", "DROP2": "2"}  # type: ignore[dict-item]
    out = good("--set-env=A=1", f"--set-env={host_file}", "--set-env", "--unset-env=DROP*", "--set-env=DROP2=again",
               "--set-env=B=$A:x", copy, "--", "env", env=env)  # fmt: skip
    lines = out.splitlines()
    for line in (
        "A=1",
        "F1=from file",
        "F2=quoted",
        "F3=from file",
        "INNER=from image",
        "KEEP=1",
        "DROP2=again",
        "B=1:x",
    ):
        assert line in lines, line
    assert not any(line.startswith("DROP1") for line in lines)
    assert "B=$A" in good("--env-no-expand", "--set-env=B=$A", copy, "--", "env").splitlines()


@pytest.mark.row("R2")
def test_r2_command_by_the_containers_path(good: Good, fails: Fails, image: Path, user: str) -> None:
    env = {**settings(user)["env"], "PATH": "/nowhere"}  # type: ignore[dict-item]
    # /bin was added; the host's /usr/bin/python3 is not found.
    assert good(image, "--", "cat", "/marker", env=env) == "one\n"
    assert fails(127, "--set-env=PATH=/nowhere", image, "--", "cat") == "can't execute cat: No such file or directory"


@pytest.mark.row("R2a")
def test_r2a_before_the_rules(good: Good, image: Path, world_tmp: Path, image_dir: Path, user: str) -> None:
    show = ["sh", "-c", "echo $HOME; echo $PATH; echo ${TMPDIR-unset}"]
    env = {**settings(user)["env"], "PATH": "/usr/bin", "TMPDIR": "/tmp"}  # type: ignore[dict-item]
    assert good(image, "--", *show, env=env) == "/root\n/usr/bin:/bin\n/tmp\n"
    copy = world_tmp / "no-root"
    if not copy.exists():
        subprocess.run(["cp", "-a", image_dir, copy], check=True)
        (copy / "root").rmdir()
    assert good(copy, "--", "sh", "-c", "echo $HOME") == "/\n"


@pytest.mark.row("R3")
def test_r3_ch_running(good: Good, image: Path) -> None:
    assert good(image, "--", "sh", "-c", "echo $CH_RUNNING") == f"{image}\n"


@pytest.mark.row("R4")
def test_r4_status_and_signal_pass(run: Run, fails: Fails, image: Path) -> None:
    assert run(image, "--", "sh", "-c", "exit 42").returncode == 42
    assert run(image, "--", "sh", "-c", "kill -SEGV $$").returncode == -signal.SIGSEGV
    assert fails(127, image, "--", "nothing") == "can't execute nothing: No such file or directory"
    assert fails(126, image, "--", "/etc") == "can't execute /etc: Permission denied: it is a directory"


# ---- The FUSE server ----


@pytest.mark.row("FUSE")
def test_server_stands_apart_and_ends_by_itself(image_sqfs: Path, user: str) -> None:
    before = leftovers.Snapshot(1)
    first = subprocess.Popen(
        [SLURM_CH, "run", str(image_sqfs), "--", "sh", "-c", "echo up; read line; cat /marker"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True, **settings(user),  # type: ignore[call-overload]
    )  # fmt: skip
    assert first.stdout.readline() == "up\n"
    servers = [
        pid for pid, line in leftovers.descendants(1).items()
        if "squashfuse_ll" in line and os.stat(f"/proc/{pid}").st_uid == settings(user)["user"]
    ]  # fmt: skip
    assert servers
    up = leftovers.parents()
    for server in servers:
        assert up[server] != first.pid
        assert os.getsid(server) == server
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(server, number)
        assert {os.readlink(f"/proc/{server}/fd/{fd}") for fd in (0, 1)} == {"/dev/null"}
    out, _ = first.communicate("\n", timeout=20)
    assert (out, first.returncode) == ("one\n", 0)
    before.wait_until_clean()


def test_command_has_no_child_that_it_did_not_start(good: Good, image_sqfs: Path) -> None:
    # The shell's only child is the one that looks.
    assert len(good(image_sqfs, "--", "sh", "-c", "cat /proc/$$/task/$$/children; true").split()) == 1


def test_without_a_server_it_says_so(fails: Fails, image_sqfs: Path, user: str) -> None:
    script = (
        "import sys; from slurm_ch.engine import squashfs; squashfs.SERVER = '/nonexistent/ch-squashfuse_ll';"
        "from slurm_ch.cli.main import main; sys.argv = ['slurm-ch', 'run', sys.argv[1], '--', 'true']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, image_sqfs],
        check=False,
        capture_output=True,
        text=True,
        timeout=20,
        **settings(user),
    )  # type: ignore[call-overload]
    assert done.returncode == 31
    assert done.stderr == (
        "slurm-ch: error: can't serve SquashFS: not found: /nonexistent/ch-squashfuse_ll;"
        " build it (make), or name another (squashfuse=)\n"
    )


# ---- The command line ----


def test_explain_shows_the_plan_and_does_nothing(image_sqfs: Path, user: str) -> None:
    done = subprocess.run(
        [SLURM_CH, "explain", str(image_sqfs), "-t", "-b", "/usr:/mnt"],
        check=True,
        capture_output=True,
        text=True,
        timeout=20,
        **settings(user),
    )  # type: ignore[call-overload]
    lines = done.stdout.splitlines()
    order = ["new user and mount namespaces", "mount SquashFS", "claim new root", "make new root read-only", "bind /dev at /dev (read-only)",
             "mount a fresh tmpfs on /tmp", "bind /usr at /mnt", "add the user to /etc/passwd", "run host hooks", "pivot into new root",
             "new user and mount namespaces: 0:0 becomes", "run guest hooks"]  # fmt: skip
    rest = iter(lines)
    for word in order:
        assert any(line.startswith(word) for line in rest), word


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--write-fake=banana", "IMG", "--", "true"], "--write-fake=banana: not a size"),
        (["-u", "x", "IMG", "--", "true"], "--uid=x: not a whole number"),
        (["--no-such-option", "IMG", "--", "true"], "No such option"),
        (["IMG"], "Missing argument 'CMD'"),
        ([], "Missing argument 'IMAGE'"),
        (["--join-ct=0", "IMG", "--", "true"], "--join-ct=0: not a whole number"),
        (["--join", "IMG", "--", "true"], "--join-ct: required outside Slurm"),
        (["-j", "--join-pid=1", "IMG", "--", "true"], "contradicts"),
    ],
)
@pytest.mark.row("errors")
def test_bad_usage_is_one_line(fails: Fails, image_dir: Path, words: list[str], message: str) -> None:
    assert message in fails(64, *[str(image_dir) if word == "IMG" else word for word in words])


@pytest.mark.row("errors")
def test_a_failed_set_up_leaves_nothing(run: Run, image: Path) -> None:
    for words in (["-b", "/usr:/new", "-b", "/usr:/tmp/no/where"], ["-c", "/nonexistent"], ["--set-env=/nonexistent"]):
        assert run(*words, image, "--", "true").returncode == 31
