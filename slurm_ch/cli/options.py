"""click options made from the option table, with the order of the command line kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from slurm_ch import options

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_TABLE = {option.name: option for option in options.OPTIONS if option.where & options.COMMAND}
_SHORT = {option.short: option for option in _TABLE.values() if option.short}


def _takes_bare(option: options.Option) -> bool:
    """Whether the option has a value that may be left out."""
    return option.kind == options.OPTIONAL or (option.kind == options.LIST and option.bare != "yes")


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
            metavar = f"[{option.arg}]" if _takes_bare(option) else option.arg
            params.append(click.Option(names, multiple=True, metavar=metavar, help=option.help))
    return params


def fill_in(args: Sequence[str], interspersed: bool) -> Iterator[str]:
    """Give each option whose value was left out its default one.

    click would take the next word for the value; here only what is attached
    (`--write-fake=1G`, `-W1G`) is one. Unless options are `interspersed`, they
    end at the first word that is none.
    """
    words = iter(args)
    for word in words:
        if word == "--":
            yield word
            yield from words
            return
        if word.startswith("--"):
            option = _TABLE.get(word[2:])
            yield f"{word}={option.bare}" if option and _takes_bare(option) else word
            if option and option.kind != options.FLAG and not _takes_bare(option):
                yield from _next(words)
        elif word.startswith("-") and len(word) > 1:
            filled, wants_value = _fill_in_cluster(word)
            yield from filled
            if wants_value:
                yield from _next(words)
        else:
            yield word
            if not interspersed:
                yield from words


def _next(words: Iterator[str]) -> Iterator[str]:
    for word in words:
        yield word
        return


def _fill_in_cluster(word: str) -> tuple[list[str], bool]:
    """Return a cluster of short options spelled out, and whether its last one wants a value."""
    out: list[str] = []
    for index, letter in enumerate(word[1:], 1):
        option = _SHORT.get(letter)
        rest = word[index + 1 :]
        if option is None:
            return [word], False
        if option.kind == options.FLAG:
            out.append(f"-{letter}")
        elif option.name == "verbose" and not rest[:1].isdigit():
            out.append("-v1")
        elif _takes_bare(option):
            out.append(f"-{letter}{rest or option.bare}")
            return out, False
        else:
            out.append(f"-{letter}{rest}")
            return out, not rest
    return out, False


class OrderedCommand(click.Command):
    """A command whose options are kept in the order given, as settings in `ctx.obj`."""

    options_may_follow = False

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # With "--" options may follow the image; without, the command's own
        # options begin behind it.
        ctx.allow_interspersed_args = self.options_may_follow or "--" in args
        filled = list(fill_in(args, ctx.allow_interspersed_args))
        opts, _, order = self.make_parser(ctx).parse_args(list(filled))
        ctx.obj = settings_in_order(opts, [param.name or "" for param in order])
        return super().parse_args(ctx, filled)


def settings_in_order(opts: dict[str, Any], order: Sequence[str]) -> list[options.Setting]:
    """Return the settings for what click's parser found, in the order given."""
    taken: dict[str, int] = {}
    settings: list[options.Setting] = []
    level = 0
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
        if option.name == "verbose" and text.isdigit():
            level += int(text)
            text = str(level)
        settings.append(options.Setting(option.name, text, f"--{option.name}"))
    return settings


def image_and_command(words: Sequence[str], with_image: bool) -> tuple[str | None, list[str]]:
    """Return the image and the command among the words that are no options."""
    if not with_image:
        return None, list(words)
    if not words:
        raise click.UsageError("Missing argument 'IMAGE'.")
    return words[0], list(words[1:])
