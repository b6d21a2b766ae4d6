# SPDX-License-Identifier: Apache-2.0
"""The C parser of the command line agrees with Python's, or leaves the line to Python; tried with random words."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slurm_ch import agreement
from slurm_ch.cli.options import OrderedCommand
from slurm_ch.cli.run import run
from slurm_ch.errors import UsageError
from slurm_ch.images import reference
from slurm_ch.request import options, step
from slurm_ch.request.words import OWN, TABLE, Words

from .made import SANITIZE, SPANK

END = b"\2\0"
# C's output for a command line that it leaves to Python.
PYTHONS = None


@pytest.fixture(scope="session")
def program(world_tmp: Path) -> Path:
    to = world_tmp / "words"
    parts = [Path(__file__).with_suffix(".c").with_name("words.c"), SPANK / "ch-join/words.c", SPANK / "ch-join/step.c"]
    subprocess.run(["cc", *SANITIZE, f"-I{SPANK}/ch-join", "-o", to, *parts], check=True)
    return to


Found = "tuple[int, int, bytes | None, bytes | None, int, int, int, bytes, bool]"


def in_c(program: Path, lines: list[list[bytes]]) -> list[tuple[object, ...] | None]:
    """Return how C reads each command line."""
    data = b"".join(b"".join(word + b"\0" for word in line) + END for line in lines)
    out = subprocess.run([program], input=data, check=True, capture_output=True).stdout
    found: list[tuple[object, ...] | None] = []
    while out:
        if out.startswith(b"python\n"):
            found.append(PYTHONS)
            out = out[7:]
            continue
        line, _, out = out.partition(b"\0\n")
        count, command, rest = line.split(b" ", 2)
        is_reference = rest.endswith(b" reference")
        rest = rest.removesuffix(b" reference")
        text, tag, peers, seconds, join, rules = rest.rsplit(b" ", 5)
        found.append((int(count), int(command), text, tag, int(peers), int(seconds), int(join), rules, is_reference))
    assert len(found) == len(lines)
    return found


def click_minds(words: list[str]) -> bool:
    """Whether click finds an error, or something to print instead of a container."""
    assert isinstance(run, OrderedCommand)
    try:
        ctx = run.make_context("run", list(words))
    except (click.ClickException, click.exceptions.Exit):
        return True
    return ctx.params["feature"] is not None or ctx.params["test"] is not None


def compare(line: list[bytes], found: tuple[object, ...]) -> None:
    """Assert that C has read what Python reads."""
    words = [os.fsdecode(word) for word in line]
    count, command, image, tag, peers, seconds, join, _, is_reference = found
    assert isinstance(count, int)
    assert isinstance(command, int)
    assert not click_minds(words)
    python = Words(words)
    wanted, argv = python.image_and_command()
    assert (os.fsencode(wanted) if wanted is not None else b"\1") == image
    assert argv == (words[command:] if command >= 0 else ["-"])
    values: dict[str, str] = {setting.name: setting.value for setting in python.settings}
    assert tag == os.fsencode(values.get("join-tag", "\1"))
    assert peers == int(values.get("join-ct", "0"))
    assert seconds == int(values.get("join-timeout", agreement.JOIN_SECONDS))
    joins = any(name in values for name in ("join", "join-ct", "join-tag"))
    assert join == joins | ("join-pid" in values) << 1
    assert is_reference == (wanted is not None and reference.is_reference(wanted))
    # The words that the launcher gets.
    again = Words(words[:count])
    assert again.words == ([wanted] if wanted is not None else [])
    assert [(one.name, one.value) for one in again.settings] == [(one.name, one.value) for one in python.settings]
    # The words that Python returns after it has checked a line.
    full = Words([*python.in_full(), "--", wanted or "", *argv])
    assert {one.name: one.value for one in full.settings} == {
        n: v for n, v in values.items() if n not in ("pull", "platform")
    }


NAMES = [*TABLE, *OWN, "cdi"]
LETTERS = "".join(option.short for option in TABLE.values())
VALUES = st.one_of(
    st.sampled_from([b"1", b"2", b"30", b"0", b"x", b"", b"/a:/b", b"A=1", b"f.env", b"/dev/fd/5", b"-W", b"--", b"yes", b"1G", b"t.1", b"a/b"]),
    st.binary(max_size=4).map(lambda data: data.replace(b"\0", b"").replace(b"\2", b"")),
)  # fmt: skip
LONG = st.tuples(st.sampled_from(NAMES), st.integers(0, 3), st.booleans(), VALUES).map(
    lambda t: b"--" + t[0][: len(t[0]) - t[1]].encode() + (b"=" + t[3] if t[2] else b"")
)
SHORT = st.tuples(st.text(LETTERS, min_size=1, max_size=4), VALUES, st.booleans()).map(
    lambda t: b"-" + t[0].encode() + (t[1] if t[2] else b"")
)
PLAIN = st.one_of(
    st.sampled_from([b"/img", b"img", b"--", b"-", b"true", b"docker://x", b"oci:x", b"debian:12", b"/proc/self/cwd"]),
    VALUES,
)
LINES = st.lists(st.one_of(LONG, SHORT, PLAIN, VALUES), max_size=7)


@settings(max_examples=40, deadline=None)
@given(st.lists(LINES, min_size=20, max_size=60))
@pytest.mark.row("L5")
def test_random_words(program: Path, lines: list[list[bytes]]) -> None:
    for line, found in zip(lines, in_c(program, lines)):
        if found is not PYTHONS:
            compare(line, found)


def every_option() -> list[list[bytes]]:
    """Every option alone: in full, in every unambiguous abbreviation, by its letter, in clusters."""
    lines = []
    for option in TABLE.values():
        value = {"join-ct": "3", "join-tag": "t", "join-timeout": "5", "join-pid": "7"}.get(option.name, "1")
        forms = []
        names = [option.name[:n] for n in range(1, len(option.name) + 1)]
        for name in names:
            known = [one for one in (*TABLE, *OWN) if one.startswith(name)]
            if len(known) == 1 or name == option.name:
                forms.append([f"--{name}"] if option.bare is not None else [f"--{name}", value])
                forms += [] if option.kind == options.FLAG else [[f"--{name}={value}"]]
        if option.short:
            forms.append([f"-{option.short}"] if option.bare is not None else [f"-{option.short}", value])
            forms += [] if option.kind == options.FLAG else [[f"-{option.short}{value}"], [f"-t{option.short}{value}"]]
        if option.name not in ("pull", "platform"):
            lines += [[*form, "img", "--", "cmd"] for form in forms] + [["img", *form, "cmd", "-x"] for form in forms]
    return [[word.encode() for word in line] for line in lines]


def test_every_option(program: Path) -> None:
    """None of them may be left to Python."""
    lines = every_option()
    assert len(lines) > 200
    for line, found in zip(lines, in_c(program, lines)):
        assert found is not PYTHONS, line
        compare(line, found)


@pytest.mark.parametrize(
    "words",
    [
        "--help", "-h", "-?", "-V", "--usage", "--feature=gc img -- x", "--test=log", "--version", "--nope img x", "--home=yes img x", "img",
        "-b", "--set img x", "--join-ct=0 img x", "--join-ct=1x img x", "--join-tag=a/b img x", "--join-timeout=0 img x", "--join --join-pid=1 img x",
        "--set-env=/dev/fd/63 img x", "/proc/self/fd/9 x", "-b /dev/stdin:/x img x", "--pull=never img x", "--join-pid=1", "--join-pid=1 sh -t",
    ],
)  # fmt: skip
def test_what_is_left_to_python(program: Path, words: str) -> None:
    assert in_c(program, [[word.encode() for word in words.split()]]) == [PYTHONS]


def test_rules_are_told_apart(program: Path) -> None:
    """The hash depends on the options that may differ from task to task, and on nothing else."""
    same = [
        "img -- x",
        "-b /a img -- x",
        "img -t -- y z",
        "--join-ct=3 img -- x",
        "--join-timeout=3 img -- x",
        "-W1G img x",
    ]
    other = ["--set-env=A=1 img x", "--set-env=A=2 img x", "--unset-env A img x", "-v img x", "-q img x", "-c/a img x", "--seccomp img x",
             "--home img x", "-dv.com/c img x", "--color img x", "--env-no-expand img x", "--keep-keyring img x", "other x"]  # fmt: skip
    hashes = [found[7] for found in in_c(program, [line.encode().split() for line in [*same, *other]]) if found]
    assert len(hashes) == len(same) + len(other)
    assert len(set(hashes[: len(same)])) == 1
    assert len(set(hashes)) == 1 + len(other)
    # These options are marked by a column of the table.
    assert set(TABLE) >= options.OF_EACH_TASK


# ---- The step ----

STEPS = [
    {"SLURM_JOB_ID": "12", "SLURM_STEP_ID": "0", "SLURMD_NODENAME": "n1", "SLURM_GTIDS": "0,1", "SLURM_STEP_TASKS_PER_NODE": "4(x2),3",
     "SLURM_NODEID": "2", "SLURM_PROCID": "9"},
    {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_NAMESPACE": "prterun-n1-12@1", "OMPI_COMM_WORLD_RANK": "1"},
    {"MPI_LOCALNRANKS": "3", "PMI_RANK": "2", "SLURM_JOB_ID": "1", "SLURM_PROCID": "0"},
    {"SLURM_JOB_ID": "1", "SLURM_CPUS_ON_NODE": "2", "SLURM_PROCID": "0"},
]  # fmt: skip
PIECES = [b"0", b"1", b"2", b"007", b"12", b"-5", b"4294967291", b"4294967290", b"1" * 13, b"", b"x", b"4(x2),3", b"2,1", b"2(x0)", b"3(x",
          b"n1", b"a/b", b"\xc3\xbc", b"\xff", b"ns@1", b" 1", b"+1", b"1,x", b"x" * 80]  # fmt: skip
STEP_VARIABLES = sorted({name for one in STEPS for name in one} | {"SLURM_HET_JOB_OFFSET", "SLURM_RESTART_COUNT"})
STEP_CASES = st.one_of(
    st.dictionaries(st.sampled_from(STEP_VARIABLES), st.sampled_from(PIECES), max_size=9),
    st.tuples(
        st.sampled_from(STEPS), st.dictionaries(st.sampled_from(STEP_VARIABLES), st.sampled_from(PIECES), max_size=2)
    ).map(lambda t: {**{name: value.encode() for name, value in t[0].items()}, **t[1]}),
)


def step_in_c(program: Path, env: dict[str, bytes]) -> tuple[str, int] | None:
    out = subprocess.run([program, "step"], env=env, check=True, capture_output=True, text=True).stdout.split()
    return None if out == ["python"] else (out[0], int(out[1]))


def step_in_python(env: dict[str, bytes]) -> tuple[str, int] | None:
    known = {name: os.fsdecode(value) for name, value in env.items()}
    try:
        tag, count = step.tag(known, ppid=os.getpid()), step.local_task_count(known)
        step.check_join(tag, count)
    except UsageError:
        return None
    return tag, count


@settings(max_examples=100, deadline=None)
@given(STEP_CASES)
def test_tag_and_count(program: Path, env: dict[str, bytes]) -> None:
    """C decides if Python finds no error; else it leaves the step to Python."""
    assert step_in_c(program, env) == step_in_python(env)


@pytest.mark.parametrize(
    ("env", "rank"),
    [
        (STEPS[0], 9),
        ({**STEPS[0], "SLURM_STEP_ID": "4294967291"}, -1),  # a batch script's is that of all that it starts
        (STEPS[1], 1),
        (STEPS[2], 2),
        (STEPS[3], -1),
    ],
)
def test_rank(program: Path, env: dict[str, str], rank: int) -> None:
    out = subprocess.run([program, "step"], env=env, check=True, capture_output=True, text=True).stdout
    assert out.split()[2] == str(rank)
