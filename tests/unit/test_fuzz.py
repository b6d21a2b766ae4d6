# SPDX-License-Identifier: Apache-2.0
"""Any input of a user leads to an error of one line with a documented code, never to a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from slurm_ch import agreement, errors, log
from slurm_ch.cli import main
from slurm_ch.engine import environment, environment_files, namespaces, task_plan
from slurm_ch.engine.action import Build
from slurm_ch.engine.caller import Caller
from slurm_ch.engine.container import Container
from slurm_ch.errors import ChError, UsageError
from slurm_ch.request import options
from slurm_ch.standalone import run as runner

# What can stand in argv and in a variable: anything but NUL, bytes that are no UTF-8 included.
ANYTHING = st.text(
    st.one_of(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF)),
    max_size=24,
)  # fmt: skip
VALUES = st.one_of(
    ANYTHING,
    st.sampled_from(["", "0", "1", "-1", "yes", "no", "=", "A=1", "=x", ":", "/a:/b", "/:/", "/usr", ",", "\\,", "$X", "1G", "101%", "99999999999999999999",
                     "/dev/null", "/dev/zero", "/", ".", "..", "\n", "x" * 5000, "²", "log", "log-fail", "squash", "auto"]),
)  # fmt: skip
NAMES = [option.name for option in options.OPTIONS if option.where & options.COMMAND]
LETTERS = "".join(option.short for option in options.OPTIONS if option.where & options.COMMAND) + "?VhZ1="
WORDS = st.one_of(
    st.tuples(st.sampled_from([*NAMES, "feature", "test", "help", "version", "usage", "set", "j"]), VALUES).map(lambda p: [f"--{p[0]}={p[1]}"]),
    st.tuples(st.sampled_from(NAMES), VALUES).map(lambda p: [f"--{p[0]}", p[1]]),
    st.sampled_from(NAMES).map(lambda name: [f"--{name}"]),
    st.tuples(st.text(LETTERS, min_size=1, max_size=4), VALUES).map(lambda p: [f"-{p[0]}", p[1]]),
    st.sampled_from(["--", "-", "/", "/tmp", "true"]).map(lambda word: [word]),
    VALUES.map(lambda word: [word]),
)  # fmt: skip
VARIABLES = ["HOME", "USER", "TMPDIR", "PATH", "CH_IMAGE_STORAGE", "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_NODEID", "SLURM_STEP_TASKS_PER_NODE", "SLURM_GTIDS",
             "OMPI_COMM_WORLD_LOCAL_SIZE", "PMIX_NAMESPACE", "SLURM_CPUS_ON_NODE", "SLURM_RESTART_COUNT", "SLURMD_NODENAME"]  # fmt: skip

CODES = {0, agreement.EXIT_SETUP, agreement.EXIT_JOIN, agreement.EXIT_USAGE, agreement.EXIT_NO_FEATURE}


@pytest.fixture(scope="module")
def no_kernel() -> Iterator[list[str]]:
    """The engine up to the point where the first namespace is made; the messages to the user."""
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:

        def plan_only(container: Container) -> Build:
            for action in container.plan():
                assert "\0" not in action.describe()
            return container.build

        def no_peers(spec: object, caller: Caller, _add_hooks: object) -> Build:
            runner.step.tag(caller.environment, ppid=1)
            runner.step.local_task_count(caller.environment)
            return Build()

        def no_process(pid: int) -> None:
            raise ChError(f"join: no process {pid}")

        def become(_ch_join: int, plan: bytes, argv: list[str], *_: object) -> None:
            assert plan.startswith(task_plan.HEADER)
            assert argv
            raise SystemExit(0)

        def become_static_command(argv: list[str]) -> None:
            name, interpreter, *_, command = argv[1:]
            assert (name, interpreter) == (agreement.SLURM_CH, sys.executable)
            assert command
            raise SystemExit(0)

        def on_purpose(error: BaseException) -> str:
            assert isinstance(error, ChError), repr(error)
            return errors.describe(error)

        patch.setattr(runner, "containerize", plan_only)
        patch.setattr(runner, "_join", no_peers)
        patch.setattr(runner.ch_join, "become", become)
        patch.setattr(runner.ch_join, "become_static_command", become_static_command)
        patch.setattr(main, "describe", on_purpose)
        patch.setattr(namespaces, "enter_pid", no_process)
        patch.setattr(log, "_write", lambda kind, text: said.append(log.line(kind, text)))
        yield said
    log.configure(level=log.WARNING, node="", color=False)


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(WORDS, max_size=6), st.dictionaries(st.sampled_from(VARIABLES), VALUES, max_size=4))
@example([["/tmp"], ["--"], ["-"]], {})
@example([["--home"], ["/tmp"], ["true"]], {})
@example([["-W"], ["/"], ["x"]], {})
@example([["--set-env"], ["/tmp"], ["x"]], {})
@example([["-j"], ["/tmp"], ["x"]], {"SLURM_JOB_ID": "1", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0"})
@pytest.mark.row("errors")
def test_no_command_line_makes_a_traceback(
    no_kernel: list[str], words: list[list[str]], variables: dict[str, str]
) -> None:
    no_kernel.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["slurm-ch", "run", *(word for pair in words for word in pair)])
        for name in VARIABLES:
            patch.delenv(name, raising=False)
        for name, value in variables.items():
            patch.setenv(name, value)
        with pytest.raises(SystemExit) as caught:
            main.main()
    assert caught.value.code in CODES
    mistakes = [line for line in no_kernel if "error: " in line]
    assert len(mistakes) == (caught.value.code not in (0, agreement.EXIT_NO_FEATURE)), no_kernel
    for line in no_kernel:
        assert line.count("\n") == 1
        assert "Error:" not in line, "a Python exception's own words"


NAME = st.text(
    st.characters(exclude_characters="=\0\n#\ufeff", exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]),
    min_size=1,
    max_size=8,
).filter(lambda name: name[0] not in "'\"" and name[-1] != "+")
VALUE = st.text(st.characters(exclude_characters="\0\n", exclude_categories=["Cs"]), max_size=12).filter(
    lambda v: (not v or v[0] != v[-1] or v[0] not in "'\"") and v[-1:] != "\r"
)


@given(st.lists(st.tuples(NAME, VALUE), max_size=5), st.booleans())
def test_environment_files_come_back(pairs: list[tuple[str, str]], by_nul: bool) -> None:
    separator = "\0" if by_nul else "\n"
    wanted = [f"{name}={value}" for name, value in pairs]
    for text in (separator.join(wanted), separator.join([*wanted, ""]), (2 * separator).join(wanted)):
        assert environment_files.parse_file(text, "f", separator) == wanted
    quoted = separator.join(f"{name}='{value}'" for name, value in pairs)
    assert environment_files.parse_file(quoted, "f", separator) == wanted


@given(st.binary(max_size=80), st.sampled_from(["\n", "\0"]))
@pytest.mark.row("errors")
def test_environment_files_of_any_bytes(data: bytes, separator: str) -> None:
    try:
        assignments = environment_files.parse_file(os.fsdecode(data), "f", separator)
    except UsageError as error:
        assert "\n" not in errors.describe(error)
        return
    records = task_plan.encode([("X", line) for line in assignments])
    assert records.count(b"\0") == len(assignments) + 1
    assert all(line.partition("=")[0] and "=" in line for line in assignments)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=60), zero=st.booleans())
def test_environment_files_through_the_engine(tmp_path: Path, data: bytes, zero: bool) -> None:
    """From the file to the plan, as a step goes."""
    file = tmp_path / "env"
    file.write_bytes(data)
    name = "set-env0" if zero else "set-env"
    wanted = environment.Environment  # the action that reads it
    spec = engine_spec(name, str(file))
    action = wanted(spec, Caller({"HOME": "/x"}))
    build = Build()
    build.root_fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        action.apply(build)
        task_plan.encode(build.records)
    except ChError as error:
        assert "\n" not in errors.describe(error)
    finally:
        os.close(build.root_fd)


def engine_spec(name: str, value: str) -> runner.Spec:
    from slurm_ch.request import parsers

    return parsers.make("/", [options.Setting(name, value, f"--{name}")])
