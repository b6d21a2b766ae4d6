# SPDX-License-Identifier: Apache-2.0
"""The command line: order is kept, some values may be left out, options may follow the image."""

from __future__ import annotations

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_ch.cli import options
from slurm_ch.errors import UsageError


def image_and_command(*words: str) -> tuple[str | None, list[str]]:
    """Return what of the words is the image, and what the command."""
    command = options.OrderedCommand("x", params=[*options.click_options(), click.Argument(["words"], nargs=-1)])
    ctx = command.make_context("x", list(words))
    return options.image_and_command(ctx)


def parse(*words: str) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the settings in order, and the words that are no options."""
    command = options.OrderedCommand("x", params=[*options.click_options(), click.Argument(["words"], nargs=-1)])
    ctx = command.make_context("x", list(words))
    return [(setting.name, setting.value) for setting in ctx.obj.settings], list(ctx.params["words"])


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
        (["-q", "img", "cmd"], [("quiet", "1")], ["img", "cmd"]),
        (["-qqq", "img", "cmd"], [("quiet", "1"), ("quiet", "2"), ("quiet", "3")], ["img", "cmd"]),
        (
            ["--cdi=v.com/c", "-dv.com/c=0", "img", "cmd"],
            [("device", "v.com/c"), ("device", "v.com/c=0")],
            ["img", "cmd"],
        ),
        (["--cdi", "img", "cmd"], [("device", "all")], ["img", "cmd"]),
        (["-q2", "img", "cmd"], [("quiet", "2")], ["img", "cmd"]),
        (["-vt", "-v", "img", "cmd"], [("verbose", "1"), ("private-tmp", "yes"), ("verbose", "2")], ["img", "cmd"]),
        # Options may follow the image; all words after the command's first word belong to the command.
        (["img", "-t", "cmd", "-W"], [("private-tmp", "yes")], ["img", "cmd", "-W"]),
        (["img", "-b", "/a", "--home", "--", "-x"], [("bind", "/a"), ("home", "yes")], ["img", "-x"]),
        (
            ["-t", "img", "-W", "sh", "-c", "x", "--", "y"],
            [("private-tmp", "yes"), ("write-fake", "12%")],
            ["img", "sh", "-c", "x", "--", "y"],
        ),
        (["img", "--", "cmd", "--", "-t"], [], ["img", "cmd", "--", "-t"]),
        (["--", "img", "cmd"], [], ["img", "cmd"]),
        (["img", "-", "-t"], [], ["img", "-", "-t"]),
        # A name may be cut short where that leaves no doubt.
        (
            ["--unset=A", "--env", "--stor", "/s", "img", "x"],
            [("unset-env", "A"), ("env-no-expand", "yes"), ("storage", "/s")],
            ["img", "x"],
        ),
        (
            ["--set-env0", "--set-env0=f", "img", "x"],
            [("set-env0", "/ch/environment"), ("set-env0", "f")],
            ["img", "x"],
        ),
        (["--color", "--color=no", "img", "x"], [("color", "yes"), ("color", "no")], ["img", "x"]),
        (
            ["-m/mnt", "--fuse-single", "--seccomp", "img", "x"],
            [("mount", "/mnt"), ("fuse-single", "yes"), ("seccomp", "yes")],
            ["img", "x"],
        ),
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
@pytest.mark.row("--")
def test_command_lines(words: list[str], settings: list[tuple[str, str]], rest: list[str]) -> None:
    assert parse(*words) == (settings, rest)


@pytest.mark.parametrize(
    "words",
    [
        ["-Z", "img"],
        ["--nope", "img"],
        ["-b"],
        ["img", "--nope", "--", "x"],
        ["img", "--nope"],
        ["--set", "img"],
        ["--join-", "img"],
        ["--=x", "img"],
        ["--home=yes", "img"],
        ["-tZ", "img"],
    ],
)
@pytest.mark.row("--abort-fatal")
def test_nonsense_is_a_usage_error(words: list[str]) -> None:
    with pytest.raises(click.UsageError):
        parse(*words)


@pytest.mark.parametrize(
    ("words", "image", "command"),
    [
        (["img", "x", "-y"], "img", ["x", "-y"]),
        (["img", "--", "x"], "img", ["x"]),
        (["img"], "img", []),
        (["img", "--"], "img", ["-"]),
        (["img", "--", "-"], "img", ["-"]),
        (["img", "--", "-", "arg"], "img", ["-", "arg"]),
        (["--join-pid=1", "--", "sh", "-c", "x"], None, ["sh", "-c", "x"]),
        (["--join-pid=1", "sh"], None, ["sh"]),
        (["--join-pid=1", "img", "--", "sh"], "img", ["sh"]),
        (["--join-pid=1", "img", "sh"], "img", ["sh"]),
    ],
)
@pytest.mark.row("--")
def test_image_and_command(words: list[str], image: str | None, command: list[str]) -> None:
    assert image_and_command(*words) == (image, command)


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
