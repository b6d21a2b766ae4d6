# SPDX-License-Identifier: Apache-2.0
"""The plugin as a guest in slurmstepd, which is root: it changes nothing, keeps nothing, and does next to nothing."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from .conftest import SOURCES, Fake
from .made import SPANK

REQUEST = {"SLURM_CH_REQUEST": "image=i\nset-env=A=%n\n"}


@pytest.mark.parametrize("env", [{}, REQUEST])
def test_no_state_of_the_process_is_changed(fake: Fake, env: dict[str, str]) -> None:
    """No thread, signal handler, timer or child; environment, umask, directory, locale and limits as they were."""
    done = fake("state", "/bin/true", **env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("contain", [{}, {"FAKE_CONTAIN": "1"}])
@pytest.mark.parametrize("callback", ["init", "init_post_opt", "user_init", "task_post_fork", "task_exit", "exit"])
def test_what_runs_as_root_makes_sockets_and_closes_them(fake: Fake, callback: str, contain: dict[str, str]) -> None:
    """Under a filter that kills at any other system call; the user's values are only searched for a name.

    init_post_opt may make, look at and close sockets, and send one of its own; at the last task's
    end one may be shut down and what is in it dropped unread; all else looks and closes.
    """
    hostile = {
        **REQUEST,
        "SLURM_CH_JOIN": "0 /bin/sh",
        "SLURM_CH_CWD": "/x",
        "SLURM_CH_REQUEST": "\x1b" * 100_000,
        "LD_PRELOAD": "",
    }
    assert fake("bare", callback, **hostile, **contain).returncode == 0
    assert fake("bare", callback, **contain).returncode == 0


def test_the_filter_would_tell(fake: Fake) -> None:
    assert fake("bare", "init_post_opt", FAKE_NOTHING="1", **REQUEST).returncode == -31  # SIGSYS
    assert fake("bare", "init_post_opt", FAKE_NOTHING="1").returncode == 0


@pytest.mark.parametrize("env", [{}, REQUEST])
def test_a_thousand_steps_leave_no_byte(fake: Fake, env: dict[str, str]) -> None:
    done = fake("memory", "/bin/true", **env)
    assert (done.returncode, done.stdout) == (0, "0 bytes more\n"), done.stderr


def test_no_code_of_ours_starts_a_thread_or_handles_a_signal() -> None:
    """The symbols that slurmstepd needs to load the plugin."""
    plugin = Path(SPANK).parent / "slurm_ch/native/slurm_ch.so"
    wanted = subprocess.run(
        ["nm", "-D", "--undefined-only", str(plugin)], check=True, capture_output=True, text=True
    ).stdout
    found = set(re.findall(r"\bU (\w+)", wanted))
    assert {"socketpair", "fork", "execve"} <= found
    assert not found & {
        "pthread_create",
        "setlocale",
        "chdir",
        "umask",
        "alarm",
        "setitimer",
        "system",
        "popen",
        "putenv",
    }


def test_only_the_grandchild_touches_signals() -> None:
    """start_launcher.c resets them for the launcher; checker.c, which no slurmstepd runs, waits for a pull as a shell does."""
    users = {
        Path(source).name
        for source in SOURCES
        if re.search(r"\bsignal\(|sigprocmask\(|\bsigaction\(", Path(source).read_text())
    }
    assert users <= {"start_launcher.c", "checker.c"}


def test_signals_that_were_ignored_from_the_start_are_no_change(fakes: dict[str, Path]) -> None:
    """As under nohup and cron."""
    words = [fakes["argv0"], "remote", "1", "0", "/bin/true"]
    started = ["sh", "-c", "trap '' INT QUIT; exec \"$@\"", "sh", *words]
    done = subprocess.run(started, check=False, capture_output=True, text=True, env={}, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "task: 0\n", "")


def test_slurm_is_told_to_fail_the_job_and_not_the_node() -> None:
    """If the plugin can't start, the job fails; for Slurm's headers that have the choice (25.05 and later)."""
    plugin = Path(SPANK).parent / "slurm_ch/native/slurm_ch.so"

    def said(*command: str) -> str:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    headers = said("cc", "-E", "-include", "slurm/spank.h", "-xc", "/dev/null")
    exported = said("nm", "-D", "--defined-only", str(plugin)).split()
    assert ("slurm_spank_init_failure_mode" in exported) is ("ESPANK_JOB_FAILURE" in headers)
    assert "slurm_spank_task_exit" in exported
