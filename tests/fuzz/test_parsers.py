# SPDX-License-Identifier: Apache-2.0
"""Every parser in Python, against any input: the right kind of error, or a value that matches the input."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from slurm_ch import errors, log
from slurm_ch.engine import accounts, environment_files, image, task_plan
from slurm_ch.errors import ChError, UsageError
from slurm_ch.plugin.facts import read_facts, task_count
from slurm_ch.request import options, parsers, site, step

FULL = os.environ.get("CHAOS") == "full"
CASES = settings(max_examples=2500 if FULL else 250, deadline=None)

# Strings as Slurm passes them to the launcher: bytes without NUL, as Python decodes them.
WORDS = st.binary(max_size=60).map(lambda b: os.fsdecode(b.replace(b"\0", b"")))
NAMES = st.sampled_from([o.name for o in options.OPTIONS if o.where & options.PLUGIN])
VALUES = st.one_of(
    WORDS,
    st.sampled_from(["", "yes", "no", "/a:/b", "a,b", "\\,", "12%", "1G", "0", "-1", "4294967295", "4294967294", "A=1", "=", "*", "x" * 100_000, "²", "\x1b[2J"]),
)  # fmt: skip
LINES = st.one_of(st.tuples(NAMES, VALUES).map(lambda p: f"{p[0]}={p[1]}"), WORDS)
ARGUMENTS = st.one_of(
    st.tuples(
        st.sampled_from(["python", "launcher", "ch_join", "storage", "squashfuse", "bind", "default", "forbid"]),
        st.one_of(VALUES, LINES),
    ).map(lambda p: f"{p[0]}={p[1]}"),
    WORDS,
)


def one_line(error: ChError) -> None:
    text = log.line("error", errors.describe(error))
    assert text.endswith("\n")
    assert text[:-1].isprintable()
    assert 0 < errors.exit_code(error) < 256


@CASES
@given(st.lists(LINES, max_size=6))
@example(["image=/i", "write=yes", "write-fake"])
def test_a_request(lines: list[str]) -> None:
    try:
        given_settings = parsers.parse_request("\n".join(lines))
        wanted = parsers.make(None, given_settings)
    except ChError as error:
        one_line(error)
        return
    assert wanted.image
    assert all(bind.dst.startswith("/") and bind.src for bind in wanted.binds)
    for number in (wanted.uid, wanted.gid):
        assert number is None or 0 <= number <= parsers.MAX_ID


@CASES
@given(st.lists(ARGUMENTS, max_size=5), st.lists(LINES, max_size=4))
def test_site_and_request(arguments: list[str], lines: list[str]) -> None:
    try:
        here = site.parse(arguments)
        asked = parsers.parse_request("\n".join(["image=/i", *lines]))
        wanted = site.combine(here, asked)
    except ChError as error:
        one_line(error)
        return
    # The request has no option that the site forbids; the site's binds are in it, first.
    assert not here.forbidden & {setting.name for setting in asked}
    assert wanted.binds[: len(here.binds)] == here.binds


@CASES
@given(st.binary(max_size=300))
@example(b"A=1\n\nB='x'\n")
@example(b"A=1\0B=2")
def test_an_environment_file(data: bytes) -> None:
    try:
        assignments = environment_files.parse_file(os.fsdecode(data), "f")
        plan = task_plan.encode([("E", assignment) for assignment in assignments])
    except ChError as error:
        one_line(error)
        return
    records = plan.removeprefix(task_plan.HEADER).split(b"\0")
    assert records.pop() == b""
    assert [os.fsencode("E" + assignment) for assignment in assignments] == records


@CASES
@given(
    st.one_of(WORDS, st.from_regex(r"[0-9]{1,4}(\(x[0-9]{1,4}\))?(,[0-9]{1,3}(\(x[0-9]{1,4}\))?){0,4}", fullmatch=True))
)
@example("4(x2),3")
@example("1(x999999999999)")
def test_tasks_per_node(text: str) -> None:
    try:
        pairs = list(step.parse_tasks_per_node(text))
    except ValueError:
        return
    again = ",".join(f"{count}(x{repeat})" for count, repeat in pairs)
    assert list(step.parse_tasks_per_node(again)) == pairs


@CASES
@given(
    st.dictionaries(
        st.sampled_from(["SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_GTIDS", "SLURM_HET_JOB_OFFSET", "SLURMD_NODENAME", "SLURM_RESTART_COUNT", "SLURM_NODEID",
                         "SLURM_STEP_TASKS_PER_NODE", "SLURM_CPUS_ON_NODE", "OMPI_COMM_WORLD_LOCAL_SIZE"]),
        st.one_of(WORDS, st.integers(-9, 2**34).map(str), st.sampled_from(["2(x3)", "4294967291", "-5", "²", "1" * 4000])),
    )
)  # fmt: skip
def test_step_facts(env: dict[str, str]) -> None:
    for ask in (lambda: step.tag(env, ppid=1), lambda: step.local_task_count(env)):
        try:
            answer = ask()
        except UsageError as error:
            one_line(error)
            continue
        if isinstance(answer, str):
            assert answer.isascii()
            assert "/" not in answer
            assert answer not in ("", ".", "..")
        else:
            assert 0 < answer <= step.MAX_TASKS


@CASES
@given(
    st.one_of(
        st.binary(max_size=300),
        st.lists(st.tuples(st.sampled_from(b"earbtx"), st.binary(max_size=20)), max_size=8).map(
            lambda records: b"slurm_ch facts 1\0" + b"".join(bytes([kind]) + text + b"\0" for kind, text in records)
        ),
    )
)
def test_facts(data: bytes) -> None:
    fd = task_plan.plan_file(data)
    try:
        facts = read_facts(fd)
        task_count(facts)
    except ChError as error:
        one_line(error)
    finally:
        os.close(fd)


@CASES
@given(WORDS, WORDS)
def test_image_names(reference: str, storage: str) -> None:
    path = image.name_to_path(reference, "/s")
    assert os.path.dirname(path) == "/s/img"
    try:
        image.resolve(reference, None, "/nonexistent")
    except ChError as error:
        one_line(error)


@CASES
@given(WORDS)
def test_lines_for_people(text: str) -> None:
    line = log.line("error", text)
    assert line[:-1].isprintable()
    line.encode()


@CASES
@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_passwd(uid: int, gid: int) -> None:
    user, group = accounts.user_line(uid, gid, "/x"), accounts.group_line(gid)
    for text, fields in ((accounts.passwd_text(uid, user), 7), (accounts.group_text(gid, group), 4)):
        rows = [line.split(":") for line in text.splitlines()]
        assert {len(row) for row in rows} == {fields}
        assert len({row[2] for row in rows}) == len(rows)


@CASES
@given(st.text(), st.integers(0, 2**32 - 1))
def test_passwd_of_an_image(text: str, uid: int) -> None:
    line = accounts.user_line(uid, 7, "/x")
    new = accounts.merged(text, line, "whole\n")
    if text.strip():
        # Every name and number stays and has the same meaning as before, except the user's own.
        old = [tuple(one.split(":")[:3:2]) for one in text.split("\n")]
        assert [tuple(one.split(":")[:3:2]) for one in new.split("\n")][-len(old) :] == old
        assert accounts.merged(new, line, "") == new


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parent / "corpus").glob("*/*")), ids=lambda p: f"{p.parent.name}-{p.name}"
)
def test_kept_cases_are_small(path: Path) -> None:
    assert path.stat().st_size <= 2048
