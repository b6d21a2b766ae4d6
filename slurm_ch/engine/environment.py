# SPDX-License-Identifier: Apache-2.0
"""Environment rules, and the plan that `ch-join` carries out in each task.

The rules are worked out once per node; `ch-join` applies them to each task's
own environment, so that SLURM_PROCID and its like stay the task's.

A plan is a sequence of NUL-terminated records, the first byte its kind:

    E NAME=VALUE   set
    X NAME=VALUE   set, with $NAME expanded
    U GLOB         unset by shell pattern
    P              give PATH a /bin if it has none
    C DIR          change to DIR, or fail
    V LEVEL        verbosity, below 0 for quiet
    K              color messages
    S              emulate root by seccomp
    R              keep the caller's session keyring, instead of the container's own
"""

from __future__ import annotations

import os

from ..errors import ChError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Record = tuple[str, str]

# So much of a wrong line is shown.
_SHOWN = 80

PLAN_HEADER = b"slurm_ch plan 1\0"


def parse_file(text: str, source: str, separator: str = "\n") -> list[str]:
    """Return the assignments of an environment file: one a line, blank lines skipped.

    With NUL for a `separator` a line may have newlines in it. UsageError names
    the line that is no assignment.
    """
    option = "--set-env" if separator == "\n" else "--set-env0"
    assignments = []
    for number, line in enumerate(text.split(separator), 1):
        if not line:
            continue
        name, equals, _ = line.partition("=")
        if not equals or not name:
            raise UsageError(f"{option}={source}: line {number} is not NAME=VALUE: {line[:_SHOWN]}")
        if "\0" in line:
            raise UsageError(f"{option}={source}: line {number} has a NUL in it")
        assignments.append(unquoted(line))
    return assignments


def unquoted(assignment: str) -> str:
    """Return an assignment without the one pair of single quotes around its value."""
    name, _, value = assignment.partition("=")
    if len(value) >= 2 and value[0] == value[-1] == "'":
        value = value[1:-1]
    return f"{name}={value}"


def first_records(home: str) -> list[Record]:
    """Return what happens to every environment before the user's rules."""
    return [("E", f"HOME={home}"), ("P", ""), ("U", "TMPDIR")]


def rule_records(
    rules: Sequence[tuple[str, str]],
    expand: bool,
    read_file: Callable[[str], str],
    device_env: Sequence[Sequence[str]] = (),
) -> list[Record]:
    """Return the records for the user's rules.

    `read_file` gives a file's text by its path, `device_env` the assignments of
    each device rule in turn.
    """
    devices = iter(device_env)
    assign = "X" if expand else "E"
    records: list[Record] = []
    for kind, value in rules:
        if kind == "unset":
            records.append(("U", value))
        elif kind == "set":
            records.append((assign, unquoted(value)))
        elif kind == "set-anywhere":
            records.append(("A", unquoted(value)))
        elif kind == "device":
            records += [("E", line) for line in next(devices)]
        else:
            separator = "\0" if kind == "file0" else "\n"
            records += [(assign, line) for line in parse_file(read_file(value), value, separator)]
    return records


def encode(records: Sequence[Record]) -> bytes:
    """Return the plan as bytes; ChError if a value can't be passed."""
    parts = [PLAN_HEADER]
    for kind, value in records:
        data = os.fsencode(kind + value)
        if b"\0" in data:
            raise ChError(f"a NUL in an environment rule: {value!r}")
        parts.append(data + b"\0")
    return b"".join(parts)


def describe(record: Record) -> str:
    """Return one line for people about a record."""
    kind, value = record
    words = {
        "E": "set",
        "X": "set, expanding:",
        "A": "set, expanding anywhere:",
        "U": "unset",
        "P": "add /bin to PATH if it has none",
        "C": "change directory to",
        "V": "verbosity",
        "K": "color messages",
        "S": "emulate root",
        "R": "keep the session keyring",
    }
    return f"environment: {words[kind]} {value}".rstrip()
