# SPDX-License-Identifier: Apache-2.0
"""Make click's options from the option table.

click prints the help, and reports wrong options. The values are parsed by request/words.py and request/parsers.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from slurm_ch.errors import UsageError
from slurm_ch.request import options, parsers
from slurm_ch.request.words import TABLE, Words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from slurm_ch.request.spec import Spec


def click_options() -> list[click.Parameter]:
    """Return one click option for each row of the table."""
    params: list[click.Parameter] = []
    for option in TABLE.values():
        names = [f"--{option.name}", option.name.replace("-", "_")]
        if option.short:
            names.append(f"-{option.short}")
        if option.kind == options.FLAG:
            params.append(click.Option(names, is_flag=True, multiple=False, help=option.help))
        elif option.bare is not None:
            params.append(OptionalValue(names, multiple=True, metavar=f"[{option.arg}]", help=option.help))
        else:
            params.append(click.Option(names, multiple=True, metavar=option.arg, help=option.help))
    return params


# The sections of --help. Options that are in none of them come last.
_SECTIONS = {
    "Image": (
        "write", "write-fake", "overlay", "broadcast", "save", "storage", "pull", "platform", "fuse-single", "mount",
    ),
    "Files and devices": ("bind", "home", "private-tmp", "no-passwd", "device", "cdi-dirs"),
    "Command and environment": ("cd", "set-env", "set-env0", "unset-env", "env-no-expand", "image-env"),
    "User and privileges": ("uid", "gid", "seccomp", "keep-keyring", "userns"),
    "One container for several processes": ("join", "join-ct", "join-tag", "join-pid", "join-timeout"),
    "Messages": ("verbose", "quiet", "color"),
}  # fmt: skip


class OptionalValue(click.Option):
    """An option with an optional value, which has to be attached (--name=value)."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        record = super().get_help_record(ctx)
        return record and (record[0].replace(" [", "[=", 1), record[1])


class OrderedCommand(click.Command):
    """A command whose options keep their order; `ctx.obj` is its parsed command line, a Words."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # The usage has the arguments; newer releases of click would list them here too.
        left = {param.name or "": param for param in self.get_params(ctx) if isinstance(param, click.Option)}
        for title, names in _SECTIONS.items():
            found = [left.pop(name.replace("-", "_"), None) for name in names]
            _write_options(ctx, formatter, title, [param for param in found if param])
        _write_options(ctx, formatter, "Other options", list(left.values()))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {
            name[2:]: isinstance(param, click.Option)
            and not (param.is_flag or param.count or isinstance(param, OptionalValue))
            for param in self.get_params(ctx)
            for name in param.opts
            if name.startswith("--") and name[2:] not in TABLE
        }
        words = Words(args, own)
        ctx.obj = words
        if words.lacks_value:
            raise click.BadOptionUsage(words.lacks_value, f"Option {words.lacks_value!r} requires an argument.", ctx)
        return super().parse_args(ctx, [*words.spelled_out, "--", *words.words])


def _write_options(
    ctx: click.Context, formatter: click.HelpFormatter, title: str, params: Sequence[click.Parameter]
) -> None:
    records = [record for record in (param.get_help_record(ctx) for param in params) if record]
    if records:
        with formatter.section(title):
            formatter.write_dl(records)


def image_and_command(ctx: click.Context) -> tuple[str | None, list[str]]:
    """Return the image and the command; click's UsageError if the image is missing."""
    words: Words = ctx.obj
    try:
        return words.image_and_command()
    except UsageError as error:
        raise click.UsageError(str(error), ctx) from None


def locate_image(spec: Spec, env: Mapping[str, str]) -> None:
    """Find, or pull, the image if it may be a reference; what that needs is not loaded for a path without a colon."""
    if ":" in spec.image:
        from .pulling import locate

        locate(spec, env)
    else:
        parsers.check_nothing_to_pull(spec)
