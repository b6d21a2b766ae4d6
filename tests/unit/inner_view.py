# SPDX-License-Identifier: Apache-2.0
"""What test_own_view.py runs as runs of their own; not collected by itself."""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
import sys
from pathlib import Path

from tests import leftovers, own_view

# As a join's, which is called after a user and a step.
NAME = "\0slurm_ch-tests-of-two-runs"


def test_sees_nobody() -> None:
    # /tmp is the machine's: what a killed ch-run has left there is no part of the view.
    assert {path for path in leftovers.files() if not path.startswith("/tmp/")} == set()
    commands = [Path(f"/proc/{pid}/comm").read_text() for pid in leftovers.parents()]
    assert "cat\n" not in commands
    orphan = subprocess.run(["sh", "-c", "sleep 0 & echo $!"], check=True, capture_output=True, text=True)
    while Path(f"/proc/{orphan.stdout.strip()}").exists():
        os.sched_yield()  # somebody reaps it


def test_home_is_empty() -> None:
    assert list(Path(pwd.getpwnam(own_view.USER).pw_dir).iterdir()) == []


def test_waits() -> None:
    print("waiting", flush=True)
    sys.stdin.readline()


def test_networks() -> None:
    own = os.readlink("/proc/self/ns/net")
    with own_view.machines_network():
        print("networks", own, os.readlink("/proc/self/ns/net"))
    assert os.readlink("/proc/self/ns/net") == own


def test_has_a_socket() -> None:
    with socket.socket(socket.AF_UNIX) as ours:
        ours.bind(NAME)
        print("waiting", flush=True)
        sys.stdin.readline()
