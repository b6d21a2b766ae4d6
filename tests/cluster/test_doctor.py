# SPDX-License-Identifier: Apache-2.0
"""`slurm-ch doctor`: each thing that would stop a step, provoked where only the test sees it."""

from __future__ import annotations

import json
import os
import pwd
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from slurm_ch.doctor import installation, node, sysctl
from slurm_ch.doctor.findings import OK, PROBLEM, WARNING
from slurm_ch.engine import squashfs
from slurm_ch.errors import ChError
from slurm_ch.sandbox.cluster import Cluster
from tests.command import SLURM_CH

from .conftest import TIMEOUT

NOBODY = pwd.getpwnam("nobody")

Doctor = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def look(cluster: Cluster, user: str) -> Doctor:
    """Run doctor in a mount namespace of its own that `setup` has changed."""

    def run(setup: str = "true", words: str = "-q", who: str = user) -> subprocess.CompletedProcess[str]:
        entry = pwd.getpwnam(who)
        drop = f"setpriv --reuid={entry.pw_uid} --regid={entry.pw_gid} --clear-groups"
        script = f"set -e; {setup}; exec {drop} {SLURM_CH} doctor {words}"
        return cluster.run(
            ["unshare", "-m", "sh", "-c", script], user="root", timeout=TIMEOUT, env=cluster.environ(who)
        )

    return run


@pytest.mark.parametrize("who", ["root", "chuser"])
def test_a_healthy_node(look: Doctor, who: str) -> None:
    done = look(who=who, words="--json --cluster")
    findings = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one for one in findings if one["grade"] == PROBLEM] == []
    assert (done.returncode, done.stderr) == (0, "")
    tried = [one["text"] for one in findings if one["about"] == "trial"]
    assert len(tried) == 3
    assert all(text.startswith(f"as {'nobody' if who == 'root' else who}: ") for text in tried)
    assert {
        "kernel",
        "/dev/fuse",
        "plugin",
        "python",
        "launcher",
        "ch-join",
        "ch-relay",
        "ch-squashfuse_ll",
        "cluster",
    } < {one["about"] for one in findings}


NO_DEV = "mount -t tmpfs tmpfs /dev; for d in null:3 zero:5 urandom:9; do mknod -m666 /dev/${d%:*} c 1 ${d#*:}; done"


@pytest.mark.parametrize(
    ("setup", "code", "message"),
    [
        ("echo 0 > $T; mount --bind $T /proc/sys/user/max_user_namespaces", 1, "user namespaces: user.max_user_namespaces is 0: switched off"),
        ("echo 99 > $T; mount --bind $T /proc/sys/user/max_mnt_namespaces", 0, "warning: user namespaces: user.max_mnt_namespaces is 99: enough for only a few"),
        ("mount -o bind,remount,ro /proc", 1, "/proc: /proc is mounted read-only"),
        (NO_DEV, 1, "/dev/fuse: can't be looked at: No such file or directory"),
        ("mount --bind /dev/null /dev/fuse", 1, "/dev/fuse: is not the FUSE device"),
        ("rm $T; mknod -m 600 $T c 10 229; mount --bind $T /dev/fuse", 1, "/dev/fuse: its mode is 0600: users can't open it"),
        (f"chmod 644 $T; mount --bind $T {squashfs.SERVER}", 1, f"ch-squashfuse_ll: can't execute {squashfs.SERVER}: Permission denied"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_node(look: Doctor, tmp_path: Path, setup: str, code: int, message: str) -> None:
    scratch = tmp_path / "scratch"
    scratch.touch()
    done = look(f"T={shlex.quote(str(scratch))}; {setup}")
    assert done.returncode == code, done
    assert message in done.stdout
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[[message in line for line in lines].index(True) + 1].startswith("    ")


def test_hidepid_does_no_harm(look: Doctor) -> None:
    done = look("mount -t proc -o hidepid=2 proc /proc", words="")
    assert (done.returncode, done.stderr) == (0, "")
    assert "ok: /proc: mounted with hidepid=" in done.stdout


def test_no_user_namespace_left(cluster: Cluster, user: str) -> None:
    # A limit of the test's own user namespace: nobody else meets it, and no sysctl that one can read tells.
    uid = pwd.getpwnam(user).pw_uid
    limit = "echo 1 > /proc/sys/user/max_user_namespaces"
    line = f"unshare -Ur sh -c '{limit}; exec unshare -U --map-user={uid} {SLURM_CH} doctor -q'"
    done = cluster.run(["sh", "-c", line], user=user, timeout=TIMEOUT)
    assert done.returncode == 1
    assert (
        f"problem: trial: as {user}: a container from a directory: can't create user and mount namespaces"
        in done.stdout
    )


@pytest.mark.parametrize(
    "name", ["kernel/unprivileged_userns_clone=0", "kernel/apparmor_restrict_unprivileged_userns=1"]
)
def test_switches_that_this_kernel_may_lack(mocker: MockerFixture, name: str) -> None:
    switch, _, bad = name.partition("=")
    mocker.patch.object(node, "read_sysctl", side_effect={switch: bad}.get)
    (found,) = node.check_user_namespaces()
    assert (found.grade, found.text) == (PROBLEM, f"{switch.replace('/', '.')} is {bad}: switched off")
    assert f"{switch.replace('/', '.')}={'1' if bad == '0' else '0'} >> /etc/sysctl.d/99-slurm_ch.conf" in found.remedy
    mocker.patch.object(node, "read_sysctl", side_effect={switch: "1" if bad == "0" else "0"}.get)
    mocker.patch.object(sysctl, "at_boot", return_value=None)
    assert list(node.check_user_namespaces()) == []
    mocker.patch.object(sysctl, "at_boot", return_value=(bad, "/etc/sysctl.d/hard.conf:3"))
    (found,) = node.check_user_namespaces()
    assert (found.grade, found.text) == (
        WARNING,
        f"{switch.replace('/', '.')} is right now, but /etc/sysctl.d/hard.conf:3 sets it to {bad} at the next boot",
    )


def test_what_a_sysctl_is_after_the_next_boot(tmp_path: Path, mocker: MockerFixture) -> None:
    first, second = tmp_path / "etc", tmp_path / "lib"
    first.mkdir()
    second.mkdir()
    cmdline, last = tmp_path / "cmdline", tmp_path / "sysctl.conf"
    mocker.patch.object(sysctl, "DIRECTORIES", (str(first), str(tmp_path / "none"), str(second)))
    mocker.patch.object(sysctl, "LAST", str(last))
    mocker.patch.object(sysctl, "COMMAND_LINE", str(cmdline))
    name = "user/max_user_namespaces"
    assert sysctl.at_boot(name) is None
    cmdline.write_text("quiet sysctl.user.max_user_namespaces=0 ro\n")
    assert sysctl.at_boot(name) == ("0", str(cmdline))
    (second / "10-a.conf").write_text("# user.max_user_namespaces = 1\n-user/max_user_namespaces = 7 \n")
    assert sysctl.at_boot(name) == ("7", f"{second}/10-a.conf:2")
    (second / "20-b.conf").write_text("user.max_* = 0\n")
    assert sysctl.at_boot(name) == ("0", f"{second}/20-b.conf:1")
    (first / "20-b.conf").write_text("user.other=0\n")  # of one name, the first counts
    assert sysctl.at_boot(name) == ("7", f"{second}/10-a.conf:2")
    last.write_text("user.max_user_namespaces=0\n")
    assert sysctl.at_boot(name) == ("0", f"{last}:1")


def test_a_value_that_does_not_survive_the_next_boot(look: Doctor) -> None:
    done = look("mount -t tmpfs tmpfs /etc/sysctl.d; echo user.max_user_namespaces=0 > /etc/sysctl.d/50-hard.conf")
    assert (done.returncode, done.stderr) == (0, "")
    text = "user.max_user_namespaces is right now, but /etc/sysctl.d/50-hard.conf:1 sets it to 0 at the next boot"
    assert f"warning: user namespaces: {text}\n    echo user.max_user_namespaces=" in done.stdout


@pytest.mark.parametrize(
    ("release", "grade"), [("5.11.22-generic", PROBLEM), ("5.12.0", OK), ("4.18.0-553.el8", PROBLEM)]
)
def test_kernel(mocker: MockerFixture, release: str, grade: str) -> None:
    mocker.patch.object(os, "uname", return_value=mocker.Mock(release=release))
    assert [one.grade for one in node.check_kernel()] == [grade]


@pytest.mark.parametrize("words", ["--user=root", "--user=no-such-user"])
def test_who_can_not_try(look: Doctor, words: str) -> None:
    done = look(words=words, who="root")
    assert (done.returncode, done.stdout) == (64, "")
    assert f"slurm-ch: error: {words}: " in done.stderr


@pytest.mark.parametrize(
    ("said", "status", "grade", "text"),
    [
        ("n1 22.05.8\nn2 22.05.2\nn3 (null)\n", 0, OK, "3 nodes, all of this Slurm release"),
        ("n1 22.05.8\nn2 24.11.5\n", 0, WARNING, "1 of 2 nodes run another Slurm release: n2 (24.11.5)"),
        ("", 1, WARNING, "sinfo failed: no controller"),
    ],
)
def test_releases_in_the_cluster(mocker: MockerFixture, said: str, status: int, grade: str, text: str) -> None:
    answers = {"sinfo": subprocess.CompletedProcess([], status, said, "no controller\n" if status else "")}
    srun = subprocess.CompletedProcess([], 0, "slurm-wlm 22.05.8\n", "")
    mocker.patch.object(installation.commands, "run", side_effect=lambda argv: answers.get(argv[0], srun))
    (found,) = installation.check_cluster()
    assert (found.grade, found.text) == (grade, text)


def test_releases_in_the_cluster_where_this_nodes_is_unknown(mocker: MockerFixture) -> None:
    def run(argv: list[str]) -> subprocess.CompletedProcess[str]:
        if argv[0] == "sinfo":
            return subprocess.CompletedProcess(argv, 0, "n1 22.05.8\n", "")
        raise ChError(f"can't run {argv[0]}")

    mocker.patch.object(installation.commands, "run", side_effect=run)
    (found,) = installation.check_cluster()
    assert (found.grade, found.text) == (WARNING, "can't find out what Slurm this node runs")
