# SPDX-License-Identifier: Apache-2.0
"""Cases in which ch-run fails and slurm-ch doesn't: lifetimes of processes, signals, messages."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import leftovers
from tests.command import CH_RUN, IN_PYTHON, SLURM_CH

from .conftest import Run, mountinfo, settings

Good = Callable[..., str]


def start(image: Path, script: str, user: str) -> subprocess.Popen[str]:
    """Start a shell in a container, leader of a session of its own as a terminal's job is."""
    return subprocess.Popen(
        [SLURM_CH, "run", str(image), "--", "sh", "-c", script],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True, **settings(user),  # type: ignore[call-overload]
    )  # fmt: skip


@pytest.mark.row("FUSE")
def test_server_outlives_the_command_for_its_children(image_sqfs: Path, user: str) -> None:
    before = leftovers.Snapshot(1)
    # The shell ends; a child of its reads the image once we say so.
    shell = start(image_sqfs, "exec 3<&0; { read line <&3; cat /marker; } & echo gone", user)
    assert shell.stdout and shell.stdin
    assert shell.stdout.readline() == "gone\n"
    assert shell.wait(timeout=20) == 0
    shell.stdin.write("go on\n")
    shell.stdin.close()
    assert shell.stdout.read() == "one\n"
    shell.stdout.close()
    before.wait_until_clean()


@pytest.mark.row("FUSE")
def test_signals_to_the_commands_group_do_not_reach_the_server(image_sqfs: Path, user: str, world_tmp: Path) -> None:
    before = leftovers.Snapshot(1)
    handlers = "; ".join(f"trap 'echo {name}; cat /marker' {name}" for name in ("INT", "TERM", "HUP", "QUIT"))
    # Not `read`: that of busybox 1.37 never ends once a signal has come.
    enough = world_tmp / "enough"
    shell = start(image_sqfs, f"{handlers}; echo up; until [ -e {enough} ]; do sleep 0.1; done; cat /marker", user)
    assert shell.stdout
    assert shell.stdout.readline() == "up\n"
    for name in ("INT", "TERM", "HUP", "QUIT"):
        os.killpg(shell.pid, getattr(signal, f"SIG{name}"))
        # The handler itself is read from the image after the signal came.
        assert (shell.stdout.readline(), shell.stdout.readline()) == (f"{name}\n", "one\n")
    enough.touch()
    out, _ = shell.communicate(timeout=20)
    assert (out, shell.returncode) == ("one\n", 0)
    before.wait_until_clean()


def test_killing_the_command_ends_the_server(image_sqfs: Path, user: str) -> None:
    before = leftovers.Snapshot(1)
    shell = start(image_sqfs, "echo up; read line", user)
    assert shell.stdout
    assert shell.stdout.readline() == "up\n"
    os.kill(shell.pid, signal.SIGKILL)
    shell.communicate(timeout=20)
    before.wait_until_clean()


@pytest.mark.row("N5")
def test_descriptors_that_the_caller_left_open_pass_and_ours_do_not(image: Path, user: str, world_tmp: Path) -> None:
    reader, writer = os.pipe()
    script = f"echo through >&{writer}; for f in /proc/$$/fd/*; do readlink $f || true; done"
    done = subprocess.run(
        [SLURM_CH, "run", str(image), "--", "sh", "-c", script], check=True, capture_output=True, text=True, timeout=20,
        stdin=subprocess.DEVNULL, pass_fds=[writer], **settings(user),  # type: ignore[call-overload]
    )  # fmt: skip
    os.close(writer)
    assert os.read(reader, 100) == b"through\n"
    os.close(reader)
    opened = [name for name in done.stdout.split() if not name.startswith("pipe:")]
    assert opened == ["/dev/null"]


@pytest.mark.row("T2")
def test_flags_of_the_hosts_mounts_are_kept(image: Path, user: str, world_tmp: Path) -> None:
    """Locked flags: a bind of a noexec, nosuid, nodev, read-only mount stays all of that."""
    point = world_tmp / "locked"
    point.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,noexec,nosuid,nodev,mode=755", "tmpfs", point], check=True)
    try:
        for words in ([], ["-W"]):
            command = [SLURM_CH, "run", *words, "-b", f"{point}:/mnt", str(image), "--", "cat", "/proc/self/mountinfo"]
            done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20, **settings(user))  # type: ignore[call-overload]
            assert {"ro", "noexec", "nosuid", "nodev"} <= set(mountinfo(done.stdout)["/mnt"][1].split(","))
    finally:
        subprocess.run(["umount", point], check=True)


@pytest.mark.row("T5")
def test_nothing_on_the_hosts_tmp(image: Path, user: str, world_tmp: Path) -> None:
    """While it runs, too: passwd and group lie in a tmpfs of the container's. The host's /tmp is one that nobody else uses."""
    host_tmp = world_tmp / "only-tmp"
    (host_tmp / "tmpdir").mkdir(parents=True, exist_ok=True)
    for path in (host_tmp, host_tmp / "tmpdir"):
        path.chmod(0o777)
    entry = pwd.getpwnam(user)
    become = f"setpriv --reuid={entry.pw_uid} --regid={entry.pw_gid} --init-groups"
    mounts = f"mount --bind {image.parent} /mnt && mount --bind {host_tmp} /tmp"
    words = [SLURM_CH, "run", f"/mnt/{image.name}", "--", "ls", "-A", "/tmp", "/tmp/tmpdir"]
    command = ["unshare", "--mount", "sh", "-c", f'{mounts} && exec {become} "$@"', "sh", *words]
    env = {**settings(user)["env"], "TMPDIR": "/tmp/tmpdir"}  # type: ignore[dict-item]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, cwd="/", env=env)
    assert done.stdout == "/tmp:\ntmpdir\n\n/tmp/tmpdir:\n"
    assert list(host_tmp.iterdir()) == [host_tmp / "tmpdir"]
    assert list((host_tmp / "tmpdir").iterdir()) == []


def test_renaming_a_directory_of_the_image(good: Good, image: Path) -> None:
    """The kernel's overlay can't without redirect_dir, which it refuses to users; so programs copy, as mv does."""
    script = "mkdir /new; mv /new /newer; mv /usr /usr.old && ls -d /newer /usr.old/bin; ls -d /usr 2>&1"
    out = good("-W", image, "--", "sh", "-c", f"{script}; true").splitlines()
    assert out == ["/newer", "/usr.old/bin", "ls: /usr: No such file or directory"]


def test_what_is_left_out_is_said(run: Run, image: Path, user: str) -> None:
    bare = run("-v", image, "--", "true").stderr
    assert "slurm-ch: info: left out: /opt/cray/xpmem: not on this node\n" in bare
    assert "left out" not in run(image, "--", "true").stderr
    done = subprocess.run(
        [SLURM_CH, "explain", str(image)], check=True, capture_output=True, text=True, **settings(user)
    )  # type: ignore[call-overload]
    assert "left out: /opt/cray/xpmem: not on this node\n" in done.stdout
    assert "\nbind /etc/resolv.conf at /etc/resolv.conf (read-only, if there)\n" in done.stdout


def test_a_place_that_the_image_lacks_is_said(run: Run, world_tmp: Path, image_dir: Path) -> None:
    root = world_tmp / "no-machine-id"
    subprocess.run(["cp", "-a", image_dir, root], check=True)
    (root / "etc/machine-id").unlink()
    assert "info: left out: /etc/machine-id: the image has no /etc/machine-id\n" in run("-v", root, "--", "true").stderr


def test_a_locale_that_the_image_lacks_is_said(run: Run, world_tmp: Path, image_dir: Path, user: str) -> None:
    """The host's locales are not shown, because a program that doesn't know their format aborts."""
    root = world_tmp / "with-a-locale"
    subprocess.run(["cp", "-a", image_dir, root], check=True)
    (root / "usr/lib/locale/de_DE.utf8").mkdir(parents=True)

    def said(*words: object, **env: str) -> list[str]:
        settled = {**settings(user)["env"], **env}  # type: ignore[dict-item]
        lines = run(*words, root, "--", "true", env=settled).stderr.splitlines()
        return [line.partition(":")[2] for line in lines if "the image has no such locale" in line]

    lacks = " info: {}: the image has no such locale; most programs use C instead (C.UTF-8 is in most"
    for env, named in (
        ({"LANG": "en_US.UTF-8"}, "LANG=en_US.UTF-8"), ({"LANG": "de_DE.UTF-8"}, ""), ({"LANG": "C.UTF-8"}, ""),
        ({"LANG": "C.UTF-8", "LC_ALL": "fr_FR@euro"}, "LC_ALL=fr_FR@euro"), ({"LANG": "fr_FR", "LC_CTYPE": "POSIX"}, ""),
    ):  # fmt: skip
        assert [line[: len(lacks.format(named))] for line in said("-v", **env)] == (
            [lacks.format(named)] if named else []
        )
    assert said(LANG="en_US.UTF-8") == []


@pytest.mark.parametrize("command", [SLURM_CH, IN_PYTHON, CH_RUN])
@pytest.mark.parametrize("options", ["", "--no-passwd", "--no-passwd -W"])
def test_a_limit_on_files_is_an_error(image: Path, user: str, command: str, options: str) -> None:
    """`ulimit -f 0` holds for memory files too; no process dies of it without a message."""
    line = f"ulimit -f 0; exec {command} {'' if command == CH_RUN else 'run'} {options} {image} -- true"
    done = subprocess.run(["sh", "-c", line], check=False, capture_output=True, text=True, timeout=30, **settings(user))  # type: ignore[call-overload]
    assert (done.returncode, done.stdout) == (31, "")
    assert done.stderr.endswith("File too large\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [SLURM_CH, IN_PYTHON])
def test_no_signal_is_ignored_that_was_not(image: Path, user: str, command: str) -> None:
    """Python ignores two signals; the command gets them as they were."""
    words = [command, "run", str(image), "--", "grep", "SigIgn", "/proc/self/status"]
    done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=30, **settings(user))  # type: ignore[call-overload]
    own = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("SigIgn"))
    pythons = sum(1 << number - 1 for number in (signal.SIGPIPE, signal.SIGXFSZ))
    # nohup, cron and shells start what is in the background with more.
    assert int(done.stdout.split()[1], 16) == int(own.split()[1], 16) & ~pythons
