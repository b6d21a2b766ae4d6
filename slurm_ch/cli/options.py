# SPDX-License-Identifier: Apache-2.0
"""click options made from the option table, with the order of the command line kept.

    [OPTIONS] IMAGE [OPTIONS] [--] CMD...

Options end at `--` or at the first word behind the image that is none: what
follows is the command's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from slurm_ch.devices import names as cdinames
from slurm_ch.request import options

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_TABLE = {option.name: option for option in options.OPTIONS if option.where & options.COMMAND}
_SHORT = {option.short: option for option in _TABLE.values() if option.short}

# What each repetition raises, instead of replacing it.
_LEVELS = ("verbose", "quiet")

# Options of `run` that are about itself: no row of the table.
_OWN_WITH_VALUE = ("feature", "test")

# The command that stands for the image's own.
IMAGES_OWN = "-"


def click_options() -> list[click.Parameter]:
    """Return one click option for each row of the table."""
    params: list[click.Parameter] = []
    for option in _TABLE.values():
        names = [f"--{option.name}", option.name.replace("-", "_")]
        if option.short:
            names.append(f"-{option.short}")
        if option.kind == options.FLAG:
            params.append(click.Option(names, is_flag=True, multiple=False, help=option.help))
        else:
            metavar = f"[{option.arg}]" if option.bare is not None else option.arg
            params.append(click.Option(names, multiple=True, metavar=metavar, help=option.help))
    return params


class _Reader:
    """Tells options, image and command apart, and gives each bare option its value.

    click would take the next word for a value that was left out; here only
    what is attached (`--write-fake=1G`, `-W1G`) is one. As with getopt_long, an
    option's name may be cut short where that leaves no doubt.
    """

    def __init__(self, args: Sequence[str], names: Iterable[str]) -> None:
        self.options: list[str] = []
        self.words: list[str] = []
        self.separated: int | None = None  # how many words stood before "--"
        self._names = tuple(names)
        self._rest = iter(args)
        for word in self._rest:
            if word == "--":
                self.separated = len(self.words)
                break
            if word.startswith("--"):
                self._long(word[2:])
            elif word.startswith("-") and len(word) > 1:
                self._cluster(word)
            else:
                self.words.append(word)
                if len(self.words) > 1:
                    break
        self.words += self._rest

    def _long(self, word: str) -> None:
        name, equals, value = word.partition("=")
        if name == "cdi":
            # ch-run's other name for it, whose bare form means every device there is.
            name, equals, value = "device", "=", value if equals else cdinames.EVERY
        name = self._in_full(name)
        option = _TABLE.get(name)
        if option and not equals and option.bare is not None and option.kind != options.FLAG:
            equals, value = "=", option.bare
        self.options.append(f"--{name}{equals}{value}")
        if not equals and (option.kind != options.FLAG if option else name in _OWN_WITH_VALUE):
            self._value(f"--{name}")

    def _in_full(self, name: str) -> str:
        if name in self._names:
            return name
        found = [known for known in self._names if known.startswith(name)]
        return found[0] if name and len(found) == 1 else name

    def _value(self, name: str) -> None:
        for word in self._rest:
            self.options.append(word)
            return
        raise click.BadOptionUsage(name, f"Option {name!r} requires an argument.")

    def _cluster(self, word: str) -> None:
        """Spell out a cluster of short options."""
        for index, letter in enumerate(word[1:], 1):
            option = _SHORT.get(letter)
            rest = word[index + 1 :]
            if option is None:
                self.options.append(f"-{word[index:]}")
                return
            if option.kind == options.FLAG:
                self.options.append(f"-{letter}")
            elif option.name in _LEVELS and not rest[:1].isdigit():
                self.options.append(f"-{letter}{option.bare}")
            elif option.bare is not None:
                self.options.append(f"-{letter}{rest or option.bare}")
                return
            else:
                self.options.append(f"-{letter}{rest}")
                if not rest:
                    self._value(f"-{letter}")
                return


class OrderedCommand(click.Command):
    """A command whose options are kept in the order given, as settings in `ctx.obj`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        names = [name[2:] for param in self.get_params(ctx) for name in param.opts if name.startswith("--")]
        reader = _Reader(args, names)
        filled = [*reader.options, "--", *reader.words]
        opts, _, order = self.make_parser(ctx).parse_args(list(filled))
        ctx.obj = settings_in_order(opts, [param.name or "" for param in order])
        ctx.meta["separated"] = reader.separated
        return super().parse_args(ctx, filled)


def settings_in_order(opts: dict[str, Any], order: Sequence[str]) -> list[options.Setting]:
    """Return the settings for what click's parser found, in the order given."""
    taken: dict[str, int] = {}
    settings: list[options.Setting] = []
    levels = dict.fromkeys(_LEVELS, 0)
    for name in order:
        option = _TABLE.get(name.replace("_", "-"))
        if option is None:
            continue
        value = opts[name]
        if option.kind == options.FLAG:
            text = "yes"
        else:
            index = taken.get(name, 0)
            taken[name] = index + 1
            text = value[index]
        if option.name in levels and text.isascii() and text.isdigit() and len(text) == 1:
            levels[option.name] += int(text)
            text = str(levels[option.name])
        settings.append(options.Setting(option.name, text, f"--{option.name}", options.COMMAND))
    return settings


def image_and_command(ctx: click.Context, words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the image and the command.

    With --join-pid there may be no image: `--join-pid=N -- CMD`, `--join-pid=N CMD`.
    """
    separated: int | None = ctx.meta["separated"]
    by_pid = any(setting.name == "join-pid" for setting in ctx.obj)
    if by_pid and (separated == 0 or (separated is None and len(words) == 1)):
        return None, list(words)
    if not words:
        raise click.UsageError("Missing argument 'IMAGE'.", ctx)
    command = list(words[1:])
    if not command and separated is not None:
        command = [IMAGES_OWN]
    return words[0], command
