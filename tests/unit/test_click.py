# SPDX-License-Identifier: Apache-2.0
"""The command line with the oldest click that is allowed, and with the newest."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from slurm_ch.cli import display
from slurm_ch.cli import options as cli_options
from slurm_ch.cli.main import COMMANDS
from slurm_ch.request import options

ROOT = Path(__file__).parents[2]
# The Makefile puts it there.
OLDEST = ROOT / ".venv/click-oldest"

RUN = "import sys; sys.path[:0] = [p for p in sys.argv.pop(1).split(':') if p]; from slurm_ch.cli.main import main; main()"


@pytest.fixture(params=["oldest", "newest"])
def command(request: pytest.FixtureRequest) -> list[str]:
    return [sys.executable, "-c", RUN, str(OLDEST) if request.param == "oldest" else ""]


def call(command: list[str], *words: str) -> tuple[int, str, str]:
    done = subprocess.run([*command, *words], check=False, capture_output=True, text=True, timeout=60, cwd=ROOT)
    return done.returncode, done.stdout, done.stderr


def on_a_terminal(words: list[str], env: dict[str, str]) -> str:
    """Return what a command writes to its terminal."""
    ours, theirs = os.openpty()
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")} | env
    with subprocess.Popen(words, stdout=theirs, env=environment, cwd=ROOT) as process:
        os.close(theirs)
        said = b""
        with suppress(OSError):  # EIO: nobody has it open any more
            while part := os.read(ours, 1 << 16):
                said += part
    os.close(ours)
    assert process.returncode == 0
    return said.decode()


def test_the_oldest_is_the_one_that_is_allowed() -> None:
    (asked,) = re.findall(r'"click>=([\d.]+),<9"', (ROOT / "pyproject.toml").read_text())
    show = "import sys, importlib.metadata as m; print(next(iter(m.distributions(name='click', path=sys.argv[1:]))).version)"
    there = subprocess.run([sys.executable, "-c", show, OLDEST], check=True, capture_output=True, text=True).stdout
    assert f"{asked}.0\n" == there


def test_without_a_word_it_shows_its_help(command: list[str]) -> None:
    status, out, err = call(command)
    assert (status, err) == (0, "")
    assert "\nCommands:\n" in out and all(f"\n  {name} " in out for name in COMMANDS)
    assert call(command, "--help") == (0, out, "")


def test_help_and_errors_of_each_command(command: list[str]) -> None:
    for name in COMMANDS:
        status, out, err = call(command, name, "--help")
        assert (status, err) == (0, "") and out.startswith(f"Usage: slurm-ch {name} ")
        status, out, err = call(command, name, "--no-such-option")
        assert (status, out) == (64, "")
        assert re.fullmatch(rf"slurm-ch: error: .*--no-such-option.* \(see slurm-ch {name} --help\)\n", err)
    assert call(command, "explane") == (
        64,
        "",
        "slurm-ch: error: No such command 'explane'. Did you mean explain? (see slurm-ch --help)\n",
    )


def test_options_in_their_order(command: list[str]) -> None:
    status, out, err = call(command, "explain", "--set-env=A=1", "-b/a:/b", "/", "--unset-env=C*", "--", "true")
    assert (status, err) == (0, "")
    assert out.index("set A=1") < out.index("unset C*")


def test_help_has_each_option_once_in_a_section(command: list[str]) -> None:
    status, out, _ = call(command, "run", "--help")
    assert status == 0
    for option in options.OPTIONS:
        if option.where & options.COMMAND:
            assert len(re.findall(rf"^  (?:-\w, )?--{option.name}\b(?!-)", out, re.M)) == 1, option.name
            # A value that may be left out has to be attached.
            attached = option.bare is not None and option.kind != options.FLAG
            assert (f"--{option.name}[=" in out) == attached, option.name
    sections = re.findall(r"^(\S.*):$", out, re.M)
    assert sections == [*cli_options._SECTIONS, "Other options"]
    assert "\n  IMAGE [" not in out  # the usage has it


@pytest.mark.parametrize(
    ("env", "colored"), [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)]
)
def test_explain_on_a_terminal(command: list[str], tmp_path: Path, env: dict[str, str], colored: bool) -> None:
    (tmp_path / "bin").mkdir()
    words = [*command, "explain", str(tmp_path), "-b", "/usr:/somewhere/else"]
    plain = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    assert "bind /usr at /somewhere/else\n" in plain
    assert "\033" not in plain
    out = on_a_terminal(words, {"TERM": "xterm", **env})
    assert ("\033[36mbind\033[0m" in out) == colored
    lines = [line for line in re.sub(r"\033\[\d*m", "", out).splitlines() if line.startswith("bind")]
    assert len(lines) == len([line for line in plain.splitlines() if line.startswith(("bind", "left out"))])
    (dev,) = (line for line in lines if line.startswith("bind  /dev "))
    (usr,) = (line for line in lines if line.startswith("bind  /usr "))
    assert dev.index("/dev", dev.index("/dev") + 1) == usr.index("/somewhere/else")
    assert dev.endswith("  read-only")


def test_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("JOB", "TASKS", "IMAGE"), ("7", "12", "/a long one"), ("1234_56", "1", "")]
    assert display.table(rows, right=(1,)) == [
        "JOB      TASKS  IMAGE",
        "7           12  /a long one",
        "1234_56      1",
    ]
    monkeypatch.setattr(display, "on_terminal", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert display.table(rows, right=(1,))[0] == "\033[1mJOB      TASKS  IMAGE\033[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert display.table(rows, right=(1,))[0] == "JOB      TASKS  IMAGE"
