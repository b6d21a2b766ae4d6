# SPDX-License-Identifier: Apache-2.0
"""Kills a process at one of its system calls, by strace, which counts the calls of each name."""

from __future__ import annotations

import re


def numbered(log: str) -> list[tuple[str, int]]:
    """Return the calls of a process up to its last execve, from strace's log: the name, and which of that name."""
    names = re.findall(r"^(\w+)\(", log, re.MULTILINE)
    last = len(names) - names[::-1].index("execve")
    return [(name, names[: place + 1].count(name)) for place, name in enumerate(names[:last])][1:]


def killed_at(name: str, number: int) -> list[str]:
    """Return the command prefix that kills a command at such a call."""
    inject = f"inject={name}:signal=KILL:when={number}"
    return ["strace", "-o", "/dev/null", "-e", f"trace={name}", "-e", inject]
