# SPDX-License-Identifier: Apache-2.0
"""Rows of the table of behaviour: the command, its server, and the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import leftovers

from .conftest import SLURM_CH, Run, settings

Good = Callable[..., str]
Fails = Callable[..., str]


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


def test_explain_shows_what_a_step_does_besides(image_sqfs: Path, image_dir: Path, user: str, world_tmp: Path) -> None:
    place = world_tmp / "explained"
    place.mkdir()
    subprocess.run(["chown", f"{user}:", place], check=True)

    def explain(*words: object) -> subprocess.CompletedProcess[str]:
        command = [SLURM_CH, "explain", *map(str, words)]
        return subprocess.run(command, check=False, capture_output=True, text=True, **settings(user))  # type: ignore[call-overload]

    alone = explain(image_sqfs, "-W").stdout
    done = explain(image_sqfs, "-W", "--broadcast", f"--save={place}/new.sqfs")
    assert done.stdout == (
        f"copy {image_sqfs} to /tmp of the job's nodes by sbcast, once per job; removed when the job ends\n{alone}"
        f"save the container in {place}/new.sqfs when all tasks have ended with status 0\n"
    )
    assert explain("--broadcast", "-W", image_sqfs, "--broadcast=/disk").stdout.startswith(
        f"copy {image_sqfs} to /disk of "
    )
    kept = explain(image_sqfs, f"--overlay={place}/kept").stdout
    assert f"\noverlay new root with the changes kept in {place}/kept\n" in kept
    assert list(place.iterdir()) == []
    for words, said in {
        (image_dir, "--broadcast"): f"--broadcast: {image_dir}: a directory; ",
        ("/", "--save=x"): "--save=x: the host as image is not saved",
        (image_sqfs, "--save", place): f"--save={place}: it is a directory",
        (image_sqfs, "--save=/no/such/x"): "--save=/no/such/x: can't use its directory",
        (image_sqfs, "--broadcast=disk"): "--broadcast=disk: neither yes, no nor an absolute path",
    }.items():
        done = explain(*words)
        assert done.returncode != 0 and done.stdout == "" and f"slurm-ch: error: {said}" in done.stderr, done


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
    order = ["new user and mount namespaces", "mount SquashFS", "mount new root", "make new root read-only", "bind /dev at /dev (read-only)",
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
        (["--pull=always", "IMG", "--", "true"], "is not a reference, so nothing is pulled; leave the option out"),
        (["--platform=linux/arm64", "IMG", "--", "true"], "--platform=linux/arm64: "),
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
