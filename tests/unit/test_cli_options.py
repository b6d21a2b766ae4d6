"""The command line: order kept, values that may be left out, options behind the image."""

from __future__ import annotations

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_ch.cli import options
from slurm_ch.errors import UsageError


def parse(*words: str) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the settings in order, and the words that are no options."""
    command = options.OrderedCommand("x", params=[*options.click_options(), click.Argument(["words"], nargs=-1)])
    ctx = command.make_context("x", list(words))
    return [(setting.name, setting.value) for setting in ctx.obj], list(ctx.params["words"])


@pytest.mark.parametrize(
    ("words", "settings", "rest"),
    [
        (["img", "--", "cmd", "-W"], [], ["img", "cmd", "-W"]),
        (["img", "cmd", "-W"], [], ["img", "cmd", "-W"]),
        (["img", "-W", "--", "cmd"], [("write-fake", "12%")], ["img", "cmd"]),
        (["-W", "img", "--", "cmd"], [("write-fake", "12%")], ["img", "cmd"]),
        (["-W1G", "img", "cmd"], [("write-fake", "1G")], ["img", "cmd"]),
        (["--write-fake", "img", "cmd"], [("write-fake", "12%")], ["img", "cmd"]),
        (["--write-fake=1G", "img", "cmd"], [("write-fake", "1G")], ["img", "cmd"]),
        (["-tW", "img", "cmd"], [("private-tmp", "yes"), ("write-fake", "12%")], ["img", "cmd"]),
        (["-tjW5%", "img", "cmd"], [("private-tmp", "yes"), ("join", "yes"), ("write-fake", "5%")], ["img", "cmd"]),
        (["-vv", "img", "cmd"], [("verbose", "1"), ("verbose", "2")], ["img", "cmd"]),
        (["-v", "-v", "img", "cmd"], [("verbose", "1"), ("verbose", "2")], ["img", "cmd"]),
        (["-v3", "img", "cmd"], [("verbose", "3")], ["img", "cmd"]),
        (["-q", "img", "cmd"], [("quiet", "yes")], ["img", "cmd"]),
        (["-b", "-W", "img", "cmd"], [("bind", "-W")], ["img", "cmd"]),
        (
            ["-b/a:/b", "-tb", "/c", "img", "cmd"],
            [("bind", "/a:/b"), ("private-tmp", "yes"), ("bind", "/c")],
            ["img", "cmd"],
        ),
        (["--set-env", "img", "cmd"], [("set-env", "/ch/environment")], ["img", "cmd"]),
        (
            ["--set-env=A=1", "--unset-env", "B", "--set-env=C=2", "img", "cmd"],
            [("set-env", "A=1"), ("unset-env", "B"), ("set-env", "C=2")],
            ["img", "cmd"],
        ),
        (
            ["-c", "/x", "-u", "1", "-g", "2", "-s", "/s", "img", "x"],
            [("cd", "/x"), ("uid", "1"), ("gid", "2"), ("storage", "/s")],
            ["img", "x"],
        ),
        (["--join-ct", "3", "--join-tag=t", "img", "x"], [("join-ct", "3"), ("join-tag", "t")], ["img", "x"]),
    ],
)
def test_command_lines(words: list[str], settings: list[tuple[str, str]], rest: list[str]) -> None:
    assert parse(*words) == (settings, rest)


@pytest.mark.parametrize("words", [["-Z", "img"], ["--nope", "img"], ["-b"], ["img", "--nope", "--", "x"]])
def test_nonsense_is_a_usage_error(words: list[str]) -> None:
    with pytest.raises(click.UsageError):
        parse(*words)


@given(
    st.lists(
        st.one_of(st.text(max_size=8), st.sampled_from(["-W", "-v", "--", "-b", "--set-env", "-tW", "-", "--join-ct"])),
        max_size=6,
    )
)
def test_no_command_line_makes_another_error(words: list[str]) -> None:
    try:
        parse(*words)
    except (click.UsageError, click.exceptions.Exit, UsageError):
        pass
