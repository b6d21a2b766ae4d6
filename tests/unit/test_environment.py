# SPDX-License-Identifier: Apache-2.0
"""Files of variables, an image's own environment script, and its metadata."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_ch import agreement
from slurm_ch.engine import (
    environment,
    environment_files,
    image_environment,
    task_plan,
)
from slurm_ch.errors import UsageError
from slurm_ch.request import options, parsers


def test_environment_file() -> None:
    assert environment_files.parse_file("A=1\n\nB=x=y\nC='q'\nD=''\nE='\n F=2 \n", "f") == [
        "A=1",
        "B=x=y",
        "C=q",
        "D=",
        "E='",
        "F=2 ",
    ]


def test_environment_file_as_people_write_it() -> None:
    text = "\ufeff# made on Windows\r\n  A=1\r\n\texport B='two words'\r\n\r\nexport  C=\"x\"\n #D=\nE=#no comment\nF= kept \n"
    assert environment_files.parse_file(text, "f") == ["A=1", "B=two words", "C=x", "E=#no comment", "F= kept "]
    # ch-run's quotes are single ones.
    assert environment_files.parse_file('C="x"', "f", either_quotes=False) == ['C="x"']
    # With NUL between, nobody wrote it by hand.
    assert environment_files.parse_file("A= 1\r\0#B=1\0", "f", "\0") == ["A= 1\r", "#B=1"]


@pytest.mark.parametrize("line", ["A B=1", "A =1", "A\t=1", "export A B=1", "A\x01=1", "A\rB=1"])
@pytest.mark.parametrize("separator", ["\n", "\0"])
def test_no_variable_has_a_blank_in_its_name(line: str, separator: str) -> None:
    with pytest.raises(UsageError, match="--set-env=f: line 2: the variable's name has a blank in it"):
        environment_files.parse_file(f"X=1{separator}{line}{separator}", "--set-env=f", separator)
    with pytest.raises(UsageError, match="the variable's name has a blank in it"):
        parsers.make("/i", [options.Setting("set-env", "A B=1", "--set-env")])


@pytest.mark.parametrize(
    ("line", "why"),
    [("A+=1", r"\+= is not understood"), ('"A"=1', "the variable's name is in quotes"), ("'A'=1", "the variable's name is in quotes"),
     ("export A+=1", r"\+= is not understood"), ("export A=1 B=2", "a value with blanks needs quotes"),
     ("export A=1  # one", "a value with blanks needs quotes"), ('\texport A="1" # one', "nothing may follow it")],
)  # fmt: skip
def test_what_a_shell_would_take_for_something_else(line: str, why: str) -> None:
    with pytest.raises(UsageError, match=f"--set-env=f: line 2: .*{why}"):
        environment_files.parse_file(f"X=1\n{line}\n", "--set-env=f")


def test_blanks_in_values() -> None:
    # With NUL between, all is what it is.
    assert environment_files.parse_file('A+=1\0"A"=1\0', "f", "\0") == ["A+=1", '"A"=1']
    text = "A=1 # no comment\nexport B='1 # 2'\nexport C=\nexport D='\\''\nexported=1 2\n"
    assert environment_files.parse_file(text, "f") == ["A=1 # no comment", "B=1 # 2", "C=", "D=\\'", "exported=1 2"]


@pytest.mark.parametrize("mark", ["\udcff\udcfe", "\udcfe\udcff"])
def test_utf_16_is_refused(mark: str) -> None:
    with pytest.raises(UsageError, match="line 1 is UTF-16"):
        environment_files.parse_file(f"{mark}A\0=\0001\0", "f")


@pytest.mark.parametrize(
    ("value", "stray"),
    [("a", ""), ("$A", ""), ("${A}b", ""), ("\\$", ""), ("a$", "$"), ("$1x", "$1x"), ("${A-b}", "${A-b}"), ("${A", "${A"),
     ("$(ls) x", "$(ls) x"), ("$A$$B", "$$B"), ("\\$(x):$_b", "")],
)  # fmt: skip
def test_a_dollar_that_means_nothing(value: str, stray: str) -> None:
    assert environment.stray_dollar(value) == stray


SCRIPT = """#!/bin/sh
# docker2singularity's and a user's
export PATH="/opt/conda/bin:/usr/bin"
export LANG="${LANG:-"C.UTF-8"}"
export QUOTED="${QUOTED:-"a \\"b\\" \\$c"}"
    export ONE=1 TWO='t w$o'
BASE=/opt/app
export PATH=$BASE/bin:$PATH LD=${LD:+$LD:}x
THREE=3; export THREE
export LIBS="$BASE/lib:${LD_LIBRARY_PATH}"
unset GONE
export MANPATH=/man${MANPATH:+:$MANPATH}
export LONG=a\\
b
"""


def test_a_script_is_read_and_not_run() -> None:
    script = image_environment.Script()
    script.read(SCRIPT.replace("LD=${LD:+$LD:}x", "LDX=x").replace("${MANPATH:+:$MANPATH}", "${MANPATH:+:$MANPATH}"))
    assert script.not_understood == []
    assert script.values == {
        "PATH": "/opt/app/bin:/opt/conda/bin:/usr/bin", "ONE": "1", "TWO": "t w\\$o", "LDX": "x", "THREE": "3",
        "LIBS": "/opt/app/lib:${LD_LIBRARY_PATH}", "MANPATH": "/man:${MANPATH}", "LONG": "ab",
    }  # fmt: skip
    assert script.defaults == {"LANG": "C.UTF-8", "QUOTED": 'a "b" \\$c'}
    assert list(script.unset) == ["GONE"]


@pytest.mark.parametrize(
    "line", ["export A=$(ls)", "export A=`ls`", ". /etc/x", "ls", "export A=${B%%x}", "(A=1)", "export A='"]
)
def test_what_only_a_shell_can_say(line: str) -> None:
    script = image_environment.Script()
    script.read(f"export X=1\n{line}\nexport Y=2\n")
    assert (script.values, script.not_understood) == ({"X": "1", "Y": "2"}, [2])


def test_behind_an_if_nothing_counts() -> None:
    script = image_environment.Script()
    script.read("export X=1\nif [ a ]; then\nexport Y=2\nfi\n")
    assert (script.values, script.not_understood) == ({"X": "1"}, [2])


@given(st.text("ab=\"'$\\\\{}:-+# \n;&", max_size=40))
def test_scripts_of_any_text(text: str) -> None:
    image_environment.Script().read(text)


@pytest.mark.parametrize(
    ("text", "directory"),
    [('{\n  "cmd": [],\n  "cwd": "/w d",\n  "env": {\n    "cwd": "/no"\n  }\n}', "/w d"), ('{\n  "cwd": "/\\u00e9\\"x"\n}', '/é"x'),
     ('{\n  "env": {\n    "cwd": "/no"\n  }\n}', ""), ("", ""), ('{\n  "cwd": "relative"\n}', ""), ('{\n  "cwd": "/\\q"\n}', "")],
)  # fmt: skip
def test_working_directory_of_metadata(text: str, directory: str) -> None:
    assert environment_files.working_directory(text) == directory


@pytest.mark.parametrize("line", ["nonsense", "=value", "export A", "export =x", "- comment"])
def test_environment_file_refuses(line: str) -> None:
    with pytest.raises(UsageError, match="--set-env=f: line 2 is not NAME=VALUE"):
        environment_files.parse_file(f"A=1\n{line}\n", "--set-env=f")


@given(st.text(max_size=100))
def test_environment_file_of_any_text(text: str) -> None:
    try:
        task_plan.encode(
            environment.rule_records([("file", "f")], "X", lambda _, f: environment_files.parse_file(text, f))
        )
    except UsageError:
        pass


def test_only_what_a_site_sets_is_expanded_after_an_equals_sign_too() -> None:
    """A user's shell has done that for the user; plugstack.conf is for all users alike."""
    rules = [("set-anywhere", "DATA=/home/$USER"), ("set", "DATA=/home/$USER")]
    assert environment.rule_records(rules, agreement.PLAN_SET, lambda _kind, _path: []) == [
        (agreement.PLAN_SET_ANYWHERE, "DATA=/home/$USER"),
        (agreement.PLAN_SET, "DATA=/home/$USER"),
    ]
