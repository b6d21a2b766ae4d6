# SPDX-License-Identifier: Apache-2.0
"""Run commands, such as srun, as users of a sandbox cluster; end them with the cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any

from slurm_ch.sandbox import machine

CLIENT_SECONDS = 1.0


class Clients:
    """The programs of one cluster's users, for `Cluster.popen` and `Cluster.run`."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[Any]] = []

    def start(self, argv: Sequence[str], *, user: str, **kw: Any) -> subprocess.Popen[Any]:
        """Start `argv` as `user`; another user than the caller gets its own session. `kw` as for subprocess.Popen."""
        entry = machine.user_entry(user)
        settings: dict[str, Any] = {
            "user": entry.pw_uid,
            "group": entry.pw_gid,
            "extra_groups": os.getgrouplist(user, entry.pw_gid),
            "cwd": "/",
            "umask": 0o022,
        }
        if entry.pw_uid != os.geteuid():
            settings["start_new_session"] = True
        with ExitStack() as opened:
            if entry.pw_uid != os.geteuid():
                settings.update(_no_terminals(opened))
            process: subprocess.Popen[Any] = subprocess.Popen(argv, **{**settings, **kw})
        self._started = [other for other in self._started if other.returncode is None]
        self._started.append(process)
        return process

    def run(self, argv: Sequence[str], *, user: str, timeout: float, **kw: Any) -> subprocess.CompletedProcess[str]:
        """Run `argv` as `user`; after `timeout` seconds, end its process group and raise subprocess.TimeoutExpired."""
        text_in = kw.pop("input", None)
        settings: dict[str, Any] = {
            "stdin": subprocess.DEVNULL if text_in is None else subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            "errors": "replace",
            # With its own process group, signals reach an srun that a shell has started.
            "start_new_session": True,
        }
        with self.start(argv, user=user, **{**settings, **kw}) as process:
            try:
                out, err = process.communicate(text_in, timeout)
            except BaseException as error:
                out, err = _end_group(process)
                if isinstance(error, subprocess.TimeoutExpired):
                    raise subprocess.TimeoutExpired(argv, timeout, out, err) from None
                raise
        return subprocess.CompletedProcess(argv, process.returncode, out, err)

    def take_running(self) -> list[subprocess.Popen[Any]]:
        """Return the programs that still run, and forget all programs."""
        running = [client for client in self._started if client.poll() is None]
        self._started.clear()
        return running


def end(clients: list[subprocess.Popen[Any]]) -> None:
    """Wait `CLIENT_SECONDS` for the clients to end with their jobs, then send SIGTERM, then SIGKILL.

    An srun that has lost slurmctld would try to reach it for another ten seconds.
    """
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + CLIENT_SECONDS
        for client in clients:
            if number is not None:
                client.send_signal(number)
        for client in clients:
            with suppress(subprocess.TimeoutExpired):
                client.wait(max(0.0, deadline - time.monotonic()))


def _no_terminals(opened: ExitStack) -> dict[str, int]:
    """Return replacements for standard streams that are terminals: /dev/null for input, write-only ones for output.

    Another user could otherwise read from them what root types. The descriptors are closed with `opened`.
    """
    found = {}
    for stream, name in enumerate(("stdin", "stdout", "stderr")):
        if os.isatty(stream):
            path = f"/proc/self/fd/{stream}" if stream else "/dev/null"
            found[name] = os.open(path, (os.O_WRONLY if stream else os.O_RDONLY) | os.O_NOCTTY | os.O_CLOEXEC)
            opened.callback(os.close, found[name])
    return found


def _end_group(process: subprocess.Popen[str]) -> tuple[str | None, str | None]:
    """End the process group that `process` leads; return its remaining output."""
    for number, seconds in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            return process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            pass
    return None, None
