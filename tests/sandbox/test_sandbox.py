# SPDX-License-Identifier: Apache-2.0
"""The command `slurm-ch sandbox`."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
from pathlib import Path

import click
import pytest

from slurm_ch.sandbox.cluster import Cluster

from .stage import (
    NEEDS_SLURM,
    ROOT,
    RUNNER,
    Terminal,
    assert_gone,
    directories_beneath,
    processes_of,
    sandbox,
    wait_until,
)

pytestmark = NEEDS_SLURM


@pytest.mark.parametrize(("script", "status"), [("exit 7", 7), ("kill -9 $$", 137), (":", 0)])
def test_status_passes_through(user: str, script: str, status: int) -> None:
    done = sandbox("--user", user, "--", "sh", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


def test_command_sees_the_cluster(user: str) -> None:
    script = "echo $SLURM_CONF; pwd; id -un; srun -N2 -l printenv SLURMD_NODENAME | sort"
    done = sandbox("--nodes=2", "--user", user, "--", "sh", "-c", script, cwd="/usr")
    conf, directory, name, *nodes = done.stdout.splitlines()
    assert conf.endswith("/slurm.conf")
    assert (directory, name) == ("/usr", user)
    assert sorted(line.split()[-1] for line in nodes) == ["n1", "n2"]
    assert_gone(os.path.dirname(conf))


def test_user_is_who_called_sudo(user: str) -> None:
    assert sandbox("--", "id", "-un", SUDO_USER=user).stdout == f"{user}\n"


def test_closed_directory_becomes_home(user: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    done = sandbox("--user", user, "pwd", cwd=str(tmp_path))
    home = pwd.getpwnam(user).pw_dir
    assert done.stdout.strip() == (home if os.path.isdir(home) else "/")


def test_orphans_of_the_command_end(user: str) -> None:
    done = sandbox("--user", user, "--", "sh", "-c", "echo $SLURM_CONF; setsid sleep 600 >&- 2>&-&")
    assert_gone(os.path.dirname(done.stdout.strip()))


def test_extra_lines_are_used(user: str) -> None:
    line = "PartitionName=second Nodes=n1"
    done = sandbox("--slurm-conf", line, "--user", user, "--", "sinfo", "-h", "-o", "%R")
    assert sorted(done.stdout.split()) == ["sandbox", "second"]


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["--user", "nobody-at-all", "true"], 64, "--user nobody-at-all: no such user"),
        (["--nodes", "0", "true"], 2, "--nodes"),
        (["--", "/no/such/command"], 127, "/no/such/command: No such file or directory"),
        (["--", "/etc/passwd"], 126, "/etc/passwd: Permission denied"),
        (["--slurm-conf", "Nonsense=yes", "true"], 31, "slurmctld did not start"),
    ],
)
def test_errors(arguments: list[str], status: int, text: str) -> None:
    done = sandbox(*arguments)
    assert done.returncode == status
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_must_be_root(user: str, tmp_path: Path) -> None:
    # A copy that the user can read, wherever this tree is.
    with Cluster(plugstack_lines=[]) as one:
        copy = shutil.copytree(ROOT / "slurm_ch", Path(one.directory) / "lib" / "slurm_ch")
        shutil.copytree(os.path.dirname(click.__file__), copy.parent / "click")
        done = one.run(
            ["/usr/bin/python3", "-c", RUNNER, "true"],
            user=user,
            env={"PYTHONPATH": str(copy.parent), "PYTHONDONTWRITEBYTECODE": "1"},
        )
    assert done.returncode == 31
    assert done.stderr == "sandbox: must be root\n"


def test_ctrl_c_ends_the_command_only(user: str) -> None:
    """The command gets it from the terminal; the sandbox waits and leaves nothing."""
    terminal = Terminal("--user", user, "sh", "-c", "echo $SLURM_CONF; exec srun -u sh -c 'echo in; sleep 60'")
    directory = os.path.dirname(terminal.expect(r"(/\S+/slurm\.conf)")[1])
    terminal.expect("in\r")
    # srun wants two within a second.
    terminal.type("\x03")
    terminal.expect("interrupt")
    terminal.type("\x03")
    assert terminal.status() != 0
    assert "Traceback" not in terminal.output
    assert_gone(directory)


def test_interactive_shell(user: str) -> None:
    terminal = Terminal("--user", user)
    terminal.expect("ends with this shell")
    terminal.type("echo $SLURM_CONF\n")
    directory = os.path.dirname(terminal.expect(r"(/tmp/\S+/slurm\.conf)")[1])
    terminal.type("srun hostname; exit 5\n")
    assert terminal.status() == 5
    assert_gone(directory)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_is_forwarded(user: str, number: signal.Signals) -> None:
    script = "trap 'exit 9' TERM HUP; echo $SLURM_CONF; sleep 60 & wait"
    terminal = Terminal("--user", user, "sh", "-c", script)
    directory = os.path.dirname(terminal.expect(r"(/\S+/slurm\.conf)\r")[1])
    os.kill(terminal.pid, number)
    assert terminal.status() == 9
    assert_gone(directory)


def test_command_that_ignores_signals_is_killed(user: str) -> None:
    script = "trap '' TERM; echo $SLURM_CONF; sleep 60"
    terminal = Terminal("--user", user, "sh", "-c", script)
    directory = os.path.dirname(terminal.expect(r"(/\S+/slurm\.conf)\r")[1])
    os.kill(terminal.pid, signal.SIGTERM)
    assert terminal.status() == 128 + signal.SIGKILL
    assert_gone(directory)


def test_kill_9_leaves_nothing(user: str) -> None:
    terminal = Terminal("--user", user, "sh", "-c", "echo $SLURM_CONF; srun sleep 60")
    directory = os.path.dirname(terminal.expect(r"(/\S+/slurm\.conf)\r")[1])
    os.kill(terminal.pid, signal.SIGKILL)
    assert terminal.status() == -signal.SIGKILL
    wait_until(lambda: not os.path.exists(directory) and processes_of(directory) == [])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_during_the_start(user: str, number: signal.Signals) -> None:
    """Wherever in the start it comes, nothing is left."""
    terminal = Terminal("--user", user, "sleep", "60")
    wait_until(lambda: directories_beneath(terminal.pid) != set())
    (directory,) = directories_beneath(terminal.pid)
    # To all, as a terminal does it: if the start is over already, it is the command's.
    os.killpg(terminal.pid, number)
    assert terminal.status() == 128 + number
    assert_gone(directory)
