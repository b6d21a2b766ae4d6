# SPDX-License-Identifier: Apache-2.0
"""The machine that a sandbox cluster runs on: its programs, memory and free ports."""

from __future__ import annotations

import os
import pwd
import random
import shutil

from slurm_ch.errors import ChError

# Below Linux's default range of ephemeral ports, which any connect() may use.
PORTS = range(15000, 32000)
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# The variables of root's that another user gets: about the display, and the path of programs. Others
# may be secrets, or refer to root's own job, session and files.
_PASSED = ("COLORTERM", "COLUMNS", "LANG", "LANGUAGE", "LINES", "NO_COLOR", "PATH", "TERM", "TZ")
_PASSED_PREFIX = "LC_"


class ClusterError(ChError):
    """A sandbox cluster can't be started, or doesn't answer. The message may end with lines of a log."""

    has_log = True


def search_path() -> str:
    """Return the caller's PATH, followed by the system's directories of programs and daemons."""
    return os.environ.get("PATH", "") + ":" + _SYSTEM_PATH


def program(name: str) -> str:
    """Return the path of Slurm's or munge's program `name`, or raise ClusterError."""
    found = shutil.which(name, path=search_path())
    if found is None:
        raise ClusterError(f"{name}: not found; a cluster needs Slurm and munge installed")
    return found


def user_entry(name: str) -> pwd.struct_passwd:
    """Return the password entry of user `name`, or raise ClusterError."""
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise ClusterError(f"{name}: no such user") from None


def environ_of(name: str) -> dict[str, str]:
    """Return an environment for the user `name`; of the caller's, only the variables in `_PASSED` are kept."""
    entry = user_entry(name)
    kept = {key: value for key, value in os.environ.items() if key in _PASSED or key.startswith(_PASSED_PREFIX)}
    return {
        **kept,
        "PATH": os.environ.get("PATH", _SYSTEM_PATH),
        "HOME": entry.pw_dir,
        "USER": name,
        "LOGNAME": name,
        "SHELL": entry.pw_shell or "/bin/sh",
    }


def memory_mib() -> int:
    """Return the machine's memory in MiB."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20


def listening() -> set[int]:
    """Return the TCP ports of this network namespace on which a process listens.

    They are read from /proc, because a connect would leave messages in the daemons' logs.
    """
    ports = set()
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/net/{name}") as file:
                next(file)
                for line in file:
                    fields = line.split()
                    if fields[3] == "0A":  # TCP_LISTEN
                        ports.add(int(fields[1].rpartition(":")[2], 16))
        except FileNotFoundError:
            pass  # a kernel without IPv6
    return ports


def free_ports(count: int) -> int:
    """Return the first of `count` adjacent TCP ports on which no process listens."""
    taken = listening()
    for _ in range(200):
        first = random.randrange(PORTS.start, PORTS.stop - count)  # noqa: S311 no secret
        if taken.isdisjoint(range(first, first + count)):
            return first
    raise ClusterError(f"no {count} adjacent free ports from {PORTS.start} to {PORTS.stop}")
