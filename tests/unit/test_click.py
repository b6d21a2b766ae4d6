# SPDX-License-Identifier: Apache-2.0
"""The command line with the oldest click that is allowed, and with the newest."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from slurm_ch.cli.main import COMMANDS

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
