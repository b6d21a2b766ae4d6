# SPDX-License-Identifier: Apache-2.0
"""ch-run's options in `slurm-ch run`: what a user of Charliecloud expects of each."""

from __future__ import annotations

import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from slurm_ch.engine import squashfs
from tests.small_images import squash

from .conftest import SLURM_CH, Run, mountinfo, settings

Good = Callable[..., str]
Fails = Callable[..., str]


def write_list(path: Path, *strings: bytes) -> None:
    """Write strings as ch-image keeps an entrypoint or command."""
    path.write_bytes(b"angi" + b"".join(struct.pack(">I", len(text)) + text for text in strings))


@pytest.fixture(scope="module")
def own_dir(world_tmp: Path, image_dir: Path) -> Path:
    """An image with an environment, an entrypoint and a command of its own."""
    copy = world_tmp / "own"
    subprocess.run(["cp", "-a", image_dir, copy], check=True)
    (copy / "ch").mkdir()
    (copy / "ch/environment").write_text("IMAGES='own'\nPATH=/opt/images:$PATH\n")
    write_list(copy / "ch/entrypoint", b"echo", b"hello")
    write_list(copy / "ch/cmd", b"wide", b"", b"world")
    return copy


@pytest.fixture(scope="module")
def own_sqfs(world_tmp: Path, own_dir: Path) -> Path:
    """The same as SquashFS."""
    return squash(own_dir, world_tmp / "own.sqfs")


@pytest.fixture(params=["directory", "SquashFS"])
def own(request: pytest.FixtureRequest, own_dir: Path, own_sqfs: Path) -> Path:
    """That image in both forms."""
    return own_dir if request.param == "directory" else own_sqfs


# ---- The image's own command and environment ----


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--", "-"], "hello wide  world\n"), (["--"], "hello wide  world\n"), (["-"], "hello wide  world\n"),
     (["--", "-", "there", "-n"], "hello there -n\n"), (["--", "echo", "-"], "-\n")],
)  # fmt: skip
@pytest.mark.row("CMD")
def test_images_own_command(good: Good, own: Path, words: list[str], said: str) -> None:
    assert good(own, *words) == said


@pytest.mark.row("CMD")
def test_entrypoint_or_command_alone(
    good: Good, fails: Fails, tmp_path: Path, world_tmp: Path, own_dir: Path, image: Path
) -> None:
    copy = world_tmp / tmp_path.name
    subprocess.run(["cp", "-a", own_dir, copy], check=True)
    (copy / "ch/cmd").unlink()
    assert good(copy, "--", "-") == "hello\n"
    write_list(copy / "ch/cmd", b"echo", b"only")
    # Empty, as ch-image writes what there is none of.
    write_list(copy / "ch/entrypoint")
    assert good(copy, "--", "-") == "only\n"
    assert good(copy, "--", "-", "echo", "mine") == "mine\n"
    nothing = "-: the image has no command of its own (/ch/entrypoint, /ch/cmd, /.singularity.d/runscript, /etc/rc)"
    assert fails(64, image, "--", "-") == nothing


@pytest.mark.parametrize(
    ("data", "why"),
    [(b'["echo"]', "not a list of strings as ch-image writes it"), (b"ang", "not a list of strings"),
     (b"angi\0\0", "truncated"), (b"angi\0\0\0\5echo", "truncated"),
     (b"angi\xff\xff\xff\xff", "truncated"), (b"angi\0\0\0\3a\0b", "a NUL in a string"),
     (b"angi" + bytes(3 << 20), "not a file of at most 2097152 bytes")],
)  # fmt: skip
def test_entrypoint_that_is_none(fails: Fails, world_tmp: Path, own_dir: Path, data: bytes, why: str) -> None:
    copy = world_tmp / "own-broken"
    if not copy.exists():
        subprocess.run(["cp", "-a", own_dir, copy], check=True)
    (copy / "ch/entrypoint").write_bytes(data)
    assert f"can't read /ch/entrypoint: {why}" in fails(31, copy, "--", "-")


def test_entrypoint_that_is_a_fifo(fails: Fails, world_tmp: Path, own_dir: Path) -> None:
    copy = world_tmp / "own-fifo"
    subprocess.run(["cp", "-a", own_dir, copy], check=True)
    (copy / "ch/entrypoint").unlink()
    os.mkfifo(copy / "ch/entrypoint", 0o644)
    os.chmod(copy / "ch/entrypoint", 0o644)
    assert fails(31, copy, "--", "-").startswith("can't read /ch/entrypoint: not a file")


@pytest.mark.row("--set-env")
def test_bare_set_env_is_the_images(good: Good, fails: Fails, own: Path, image: Path, user: str) -> None:
    lines = good("--set-env", own, "--", "env").splitlines()
    assert {"IMAGES=own", "PATH=/opt/images:/usr/bin:/bin"} <= set(lines)
    lines = good("--env-no-expand", "--set-env0=X=1", "--set-env", own, "--", "/bin/env").splitlines()
    assert {"IMAGES=own", "PATH=/opt/images:$PATH", "X=1"} <= set(lines)
    assert fails(31, "--set-env", image, "--", "true").startswith(
        "--set-env=/ch/environment: can't read environment file"
    )


@pytest.mark.row("--set-env0")
def test_set_env0(good: Good, fails: Fails, image: Path, world_tmp: Path, user: str) -> None:
    file = world_tmp / "env0"
    file.write_bytes(b"A=one\ntwo\0\0B='q'\0C=$B:x\0")
    out = good(f"--set-env0={file}", image, "--", "env")
    assert "A=one\ntwo\nB=q\nC=q:x\n" in out
    # Taken for lines, the same file is no such thing.
    assert "line 2 has a NUL in it" in fails(64, f"--set-env={file}", image, "--", "true")
    file.write_bytes(b"A=1\0nothing\0")
    assert fails(64, f"--set-env0={file}", image, "--", "true").endswith("line 2 is not NAME=VALUE: nothing")


def test_set_env_of_odd_files(good: Good, fails: Fails, image: Path, world_tmp: Path) -> None:
    file = world_tmp / "odd-env"
    file.write_bytes(b'A=\xff\xfe\n B= b \nC="q" # no comment')
    out = good(f"--set-env={file}", image, "--", "env", encoding="utf-8", errors="surrogateescape")
    assert "A=\udcff\udcfe\n" in out
    assert 'B= b \nC="q" # no comment\n' in out
    assert fails(31, "--set-env=/dev/zero", image, "--", "true").endswith("file: not a regular file")
    assert fails(31, f"--set-env={world_tmp}", image, "--", "true").endswith("Is a directory")


@pytest.mark.row("--set-env")
def test_quotes_around_a_value(good: Good, image: Path) -> None:
    lines = good("--set-env=A='b c'", "--set-env='B=c'", "--set-env=C=''''", image, "--", "env").splitlines()
    assert {"A=b c", "'B=c'", "C=''"} <= set(lines)


@pytest.mark.parametrize(
    ("pattern", "kept"),
    [("!(WANTED_*|PATH)", "WANTED_1"), ("@(NOT|WANTED)_*", ""), ("+(N|O|T)_1", "WANTED_1"), ("?(NOT)_1", "WANTED_1")],
)
@pytest.mark.row("--unset-env")
def test_unset_env_takes_extended_patterns(good: Good, image: Path, user: str, pattern: str, kept: str) -> None:
    env = {**settings(user)["env"], "WANTED_1": "1", "NOT_1": "1"}  # type: ignore[dict-item]
    names = {
        line.partition("=")[0] for line in good(f"--unset-env={pattern}", image, "--", "env", env=env).splitlines()
    }
    assert {"WANTED_1", "NOT_1"} & names == set(kept.split())


# ---- The host as image ----


@pytest.mark.row("IMAGE")
def test_host_as_image(good: Good, run: Run, user: str, world_tmp: Path) -> None:
    env = {**settings(user)["env"], "PATH": "/usr/bin", "TMPDIR": "/var/tmp"}  # type: ignore[dict-item]
    show = "echo $HOME $PATH $TMPDIR $CH_RUNNING; id -un; cat /etc/hostname"
    host = Path("/etc/hostname").read_text()
    assert good("/", "--", "/bin/sh", "-c", show, env=env) == f"/home/{user} /usr/bin /var/tmp /\n{user}\n{host}"
    mounts = mountinfo(good("/", "--", "cat", "/proc/self/mountinfo"))
    assert mounts["/"][1].split(",")[0] == "ro"
    assert "/etc/passwd" not in mounts
    # Only the root file system is read-only: what is mounted in it is as it was.
    with tempfile.TemporaryDirectory(dir="/dev/shm") as mine:
        os.chmod(mine, 0o777)
        good("/", "--", "touch", f"{mine}/new")
        assert os.listdir(mine) == ["new"]
    assert good("-t", "//", "--", "ls", "-A", "/tmp") == ""
    assert good("-b", f"{world_tmp}:/mnt", "/.", "--", "ls", "-d", "/mnt/image") == "/mnt/image\n"
    assert mountinfo(good("-w", "/", "--", "cat", "/proc/self/mountinfo"))["/"][1].split(",")[0] == "rw"


def test_host_as_image_cannot_be_overlaid(fails: Fails) -> None:
    why = ": the host as image can't be overlaid: the kernel hides the mounts below /"
    assert fails(64, "-W", "/", "--", "true") == f"--write-fake{why}"
    assert fails(64, "--home", "/", "--", "true") == f"--home{why}"


# ---- Names and storage ----


@pytest.mark.row("--storage")
def test_images_of_ch_image_are_not_written_to(fails: Fails, good: Good, world_tmp: Path, image_dir: Path) -> None:
    storage = world_tmp / "ch-image"
    (storage / "img").mkdir(parents=True)
    subprocess.run(["cp", "-a", image_dir, storage / "img/foo+1"], check=True)
    for reference in ("foo:1", storage / "img/foo+1"):
        line = fails(64, "-w", "-s", storage, reference, "--", "true")
        assert line == f"--write: an image in {storage} may only be written by ch-image: {reference}"
        assert good("-s", storage, reference, "--", "cat", "/marker") == "one\n"


@pytest.mark.row("--storage")
def test_a_storage_that_is_not_there(run: Run, good: Good, image: Path, world_tmp: Path) -> None:
    done = run("-s", "/nonexistent", image, "--", "cat", "/marker")
    assert (done.returncode, done.stdout) == (0, "one\n")
    assert done.stderr == "slurm-ch: warning: --storage=/nonexistent: no such directory\n"
    assert good("-s", ".", image, "--", "cat", "/marker", cwd=world_tmp) == "one\n"


# ---- The mount point, threads ----


@pytest.mark.row("--mount")
def test_mount_point(good: Good, run: Run, fails: Fails, image_dir: Path, image_sqfs: Path, world_tmp: Path) -> None:
    point = world_tmp / "point"
    point.mkdir()
    assert good("-m", point, image_sqfs, "--", "cat", "/marker") == "one\n"
    assert good("--mount=point", image_sqfs, "--", "cat", "/marker", cwd=world_tmp) == "one\n"
    line = fails(64, "-m", "/nonexistent", image_sqfs, "--", "true")
    assert line == "--mount=/nonexistent: the mount point is not a directory"
    done = run("-m", point, image_dir, "--", "cat", "/marker")
    assert (done.returncode, done.stdout) == (0, "one\n")
    assert done.stderr == f"slurm-ch: warning: --mount={point}: ignored: the image is not a SquashFS file\n"
    assert run("-qq", "-m", point, image_dir, "--", "true").stderr == ""


@pytest.mark.row("--fuse-single")
def test_fuse_single_reaches_the_server(image_sqfs: Path, good: Good, user: str, world_tmp: Path) -> None:
    real = squashfs.SERVER
    spy = world_tmp / "spy-server"
    spy.write_text(f'#!/bin/sh\necho "$@" > {world_tmp}/spy-arguments\nexec {real} "$@"\n')
    spy.chmod(0o755)
    (world_tmp / "spy-arguments").touch()
    (world_tmp / "spy-arguments").chmod(0o666)
    script = (
        "import sys; from slurm_ch.engine import squashfs; squashfs.SERVER = sys.argv[1];"
        "from slurm_ch.cli.main import main; sys.argv = ['slurm-ch', 'run', *sys.argv[2:]]; main()"
    )
    for words, single in ((["--fuse-single"], True), ([], False)):
        command = [sys.executable, "-c", script, spy, *words, image_sqfs, "--", "cat", "/marker"]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=20, **settings(user))  # type: ignore[call-overload]
        assert (done.returncode, done.stdout) == (0, "one\n"), done
        assert ("-s" in (world_tmp / "spy-arguments").read_text().split()) == single
    assert good("--fuse-single", image_sqfs, "--", "cat", "/marker") == "one\n"


# ---- Messages ----


@pytest.mark.parametrize(
    ("words", "out", "err"),
    [
        ([], "out\n", "err\n"),
        (["-q"], "", "err\n"),
        (["-qq"], "", "err\n"),
        (["-qqq"], "", ""),
        (["--quiet=3"], "", ""),
    ],
)
@pytest.mark.row("--quiet")
def test_quiet_levels(run: Run, image: Path, words: list[str], out: str, err: str) -> None:
    done = run(*words, image, "--", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, out, err)


def test_quiet_never_hides_why_it_failed(fails: Fails, image: Path) -> None:
    assert fails(127, "-qqq", image, "--", "nothing").startswith("can't execute nothing")
    assert fails(31, "-qqq", "/nonexistent", "--", "true").startswith("can't stat image")


@pytest.mark.parametrize(
    ("words", "kinds"),
    [(["-qq"], ""), (["-q"], "warning"), ([], "warning"), (["-v"], "info warning"), (["-vv"], "debug info warning")],
)
@pytest.mark.row("--test")
def test_test_shows_each_level(run: Run, words: list[str], kinds: str) -> None:
    done = run(*words, "--test=log")
    assert done.returncode == 0
    assert [line.split(":")[1].strip() for line in done.stderr.splitlines()] == kinds.split()
    done = run(*words, "--test", "log-fail")
    assert (done.returncode, done.stderr.splitlines()[-1].split(":")[1].strip()) == (31, "error")


@pytest.mark.row("--verbose")
def test_verbose_levels(run: Run, image: Path, fails: Fails) -> None:
    lines = {level: run("-" + "v" * level, "--set-env=A=1", image, "--", "true").stderr for level in (1, 2, 3)}
    assert "info: executing true" in lines[1]
    assert "debug: make new root read-only" not in lines[1]
    assert "debug: make new root read-only" in lines[2]
    assert "environment: A=1" not in lines[2]
    assert "info: environment: A=1" in lines[3]
    assert "not a whole number from 0 to 3" in fails(64, "-vvvv", image, "--", "true")
    assert "contradicts --verbose" in fails(64, "-v", "-q", image, "--", "true")


@pytest.mark.row("--color")
def test_color(run: Run, image: Path, user: str) -> None:
    red = "\033[0;31mslurm-ch: error: can't execute nothing: No such file or directory\033[0m\n"
    for word in ("--color", "--color=yes", "--color=always", "--color=force"):
        assert run(word, image, "--", "nothing").stderr == red
    for word in ("--color=no", "--color=auto", "--color=never"):
        assert "\033" not in run(word, image, "--", "nothing").stderr
    assert run("--color", "/nonexistent", "--", "x").stderr.startswith("\033[0;31mslurm-ch: error: can't stat image")


@pytest.mark.row("--color")
def test_color_on_a_terminal(image_dir: Path, user: str) -> None:
    for words, colored in (([], True), (["--color=never"], False)):
        ours, theirs = pty.openpty()
        command = [SLURM_CH, "run", *words, str(image_dir), "--", "nothing"]
        done = subprocess.run(command, check=False, timeout=20, stdout=theirs, stderr=theirs, **settings(user))  # type: ignore[call-overload]
        os.close(theirs)
        text = os.read(ours, 4096)
        os.close(ours)
        assert done.returncode == 127
        assert text.startswith(b"\033[0;31m") == colored


# ---- Questions instead of a command ----


@pytest.mark.row("--feature")
def test_features(run: Run, fails: Fails) -> None:
    status = {
        name: run(f"--feature={name}").returncode for name in ("extglob", "seccomp", "squash", "json", "overlayfs")
    }
    assert set(status.values()) == {0}, status
    assert run("--feature", "gc").returncode == 87
    assert run("--feature", "tmpfs-xattrs").returncode in (0, 87)
    assert fails(64, "--feature=nope").startswith("--feature=nope: unknown; there are extglob")
    assert "requires an argument" in fails(64, "--feature")


@pytest.mark.row("--help")
def test_version_usage_help(run: Run, fails: Fails) -> None:
    for word in ("-V", "--version"):
        assert run(word).stdout.startswith("slurm-ch, version ")
    assert run("--usage").stdout == "Usage: slurm-ch run [OPTIONS] IMAGE [--] CMD...\n"
    for word in ("-?", "-h", "--help"):
        assert "--fuse-single" in run(word).stdout
    assert fails(64, "--test=nope") == "--test=nope: neither log nor log-fail"


# ---- Root emulation ----

CALLS = """
chown 12:34 /file; echo chown $?
chown -h 12:34 /link; echo lchown $?
mknod /null c 1 3; echo device $?; ls /null 2>/dev/null
mknod /fifo p; echo fifo $?; ls /fifo
touch /plain; echo plain $?
stat -c %u /file
"""


def test_seccomp(good: Good, run: Run, image: Path, user: str) -> None:
    uid = settings(user)["user"]
    prepare = "touch /file; ln -s file /link;"
    out = good("-W", "--seccomp", image, "--", "sh", "-c", prepare + CALLS)
    assert out.split() == ["chown", "0", "lchown", "0", "device", "0", "fifo", "0", "/fifo", "plain", "0", str(uid)]
    done = run("-W", image, "--", "sh", "-c", prepare + CALLS)
    assert done.stdout.split()[:6] == ["chown", "1", "lchown", "1", "device", "1"]
    assert "Seccomp:\t2\n" in good("--seccomp", image, "--", "cat", "/proc/self/status")
    assert "Seccomp:\t0\n" in good(image, "--", "cat", "/proc/self/status")


@pytest.mark.row("--seccomp")
def test_seccomp_of_every_call(good: Good, world_tmp: Path, image: Path) -> None:
    """A static program makes each call itself, with arguments that the kernel would refuse."""
    source = world_tmp / "calls.c"
    source.write_text(
        """
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/capability.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#define TRY(name, ...) if (syscall(SYS_##name, __VA_ARGS__)) { perror(#name); bad++; }
int main(void)
{
	int bad = 0;
	gid_t groups[] = { 7, 8 };
	struct __user_cap_header_struct head = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct all[2] = { { ~0u, ~0u, ~0u }, { ~0u, ~0u, ~0u } };
	TRY(chown, "/", 1, 2) TRY(fchown, 0, 1, 2) TRY(lchown, "/", 1, 2) TRY(fchownat, AT_FDCWD, "/", 1, 2, 0)
	TRY(setuid, 1) TRY(setgid, 1) TRY(setreuid, 1, 2) TRY(setregid, 1, 2) TRY(setgroups, 2, groups)
	TRY(setresuid, 1, 2, 3) TRY(setresgid, 1, 2, 3) TRY(setfsuid, 1) TRY(setfsgid, 1)
	TRY(capset, &head, all) TRY(kexec_load, 0, 0, 0, 0)
	TRY(mknod, "/x", S_IFCHR | 0644, makedev(1, 3)) TRY(mknodat, AT_FDCWD, "/x", S_IFBLK | 0644, makedev(8, 0))
#ifdef __x86_64__
	/* setuid32, as a 32-bit program calls it. */
	long called = 213;
	__asm__ volatile("int $0x80" : "+a"(called) : "b"(1) : "memory");
	if (called) bad++;
#endif
	if (!syscall(SYS_mknod, "/proc/x", S_IFREG | 0644, 0)) bad++;
	printf("%d %d %d\\n", bad, getuid() != 1, access("/x", F_OK));
	return bad;
}
"""
    )
    program = world_tmp / "calls"
    subprocess.run(["cc", "-static", "-o", program, source], check=True)
    assert good("--seccomp", image, "--", program) == "0 1 -1\n"


# ---- Under ch-run's own name ----


def test_ch_run_by_name(image: Path, user: str, world_tmp: Path) -> None:
    root, at = Path(__file__).parents[2], Path(tempfile.mkdtemp(dir=world_tmp))
    at.chmod(0o755)
    (at / "lib/slurm_ch").mkdir(parents=True)
    (at / "lib/slurm_ch/native").symlink_to(root / "slurm_ch/native")
    make = ["make", "-s", "-C", root, f"DESTDIR={at}", "prefix=/usr", "libdir=/lib"]
    subprocess.run([*make, "install-ch-run"], check=True)
    ch_run = at / "usr/bin/ch-run"

    def run(*words: object) -> tuple[int, str, str]:
        done = subprocess.run(
            [ch_run, *map(str, words)], check=False, capture_output=True, text=True, timeout=20, **settings(user)
        )  # type: ignore[call-overload]
        return done.returncode, done.stdout, done.stderr

    assert run("-t", image, "--", "cat", "/marker") == (0, "one\n", "")
    assert run(image, "-c/srv", "--", "sh", "-c", "pwd; exit 3") == (3, "/srv\n", "")
    code, _, said = run("--zzz", image)
    assert code == 64
    assert re.fullmatch(r"slurm-ch: error: No such option:? '?--zzz'?\.? \(see ch-run --help\)\n", said)  # each click's
    assert run("--usage") == (0, "Usage: ch-run [OPTIONS] IMAGE [--] CMD...\n", "")
    assert run("--feature=gc")[0] == 87
    subprocess.run([*make, "uninstall", "libdir=/nowhere"], check=True)
    assert ch_run.exists(), "another's"
    subprocess.run([*make, "uninstall"], check=True)
    assert not ch_run.is_symlink()
