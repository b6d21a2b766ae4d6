# SPDX-License-Identifier: Apache-2.0
"""`slurm-ch explain`: show the plan of a container without applying it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from slurm_ch import log
from slurm_ch.engine import binds
from slurm_ch.engine import container as engine
from slurm_ch.engine.caller import Caller
from slurm_ch.request import options, parsers

from . import display
from .options import OptionalValue, OrderedCommand, click_options, image_and_command, locate_image

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slurm_ch.engine.action import Action


# Options of srun and sbatch only, which add something before or after the container's own plan.
STEPS = ("broadcast", "save")


@click.pass_context
def _explain(ctx: click.Context, /, **given: Any) -> None:
    """Show how a container would be made from IMAGE, without making it.

    Each line is one action. An IMAGE in a registry is pulled if it is not in the cache.
    On a terminal, binds are aligned, and optional binds whose source is missing here are dimmed.
    --broadcast and --save also show what --ch-broadcast and --ch-save add to a step.
    """
    image, _command = image_and_command(ctx)
    steps = [
        options.Setting(name, given[name], f"--{name}", options.PLUGIN) for name in STEPS if given[name] is not None
    ]
    wanted = parsers.make(image, [*ctx.obj.settings, *steps], "IMAGE")
    locate_image(wanted, dict(os.environ))
    container = engine.Container(wanted, Caller(dict(os.environ)))
    before: list[str] = []
    after: list[str] = []
    if steps:
        from . import step

        before, after = step.before(container), step.after(container)
    if display.on_terminal():
        lines = [*map(_painted, before), *_formatted(container.plan()), *map(_painted, after)]
    else:
        lines = [log.printable(line) for line in (*before, *engine.explain(container), *after)]
    for line in lines:
        click.echo(line)


def _formatted(plan: Sequence[Action]) -> list[str]:
    """Return the plan's lines with binds in columns, and missing optional ones dimmed."""
    mounts = [one for one in plan if isinstance(one, binds.BindMount)]
    rows = [["bind", log.printable(one.src), log.printable(one.dst), ", ".join(one.notes())] for one in mounts]
    aligned = iter(display.columns(rows))
    lines = []
    for action in plan:
        if isinstance(action, binds.BindMount):
            line = "  ".join(next(aligned)).rstrip()
            missing = action.src_optional and not os.path.exists(action.src)
        else:
            line, missing = log.printable(action.describe()), False
        lines.append(display.paint(line, dim=True) if missing else _painted(line))
    return lines


def _painted(line: str) -> str:
    verb, space, rest = log.printable(line).partition(" ")
    return display.paint(verb, fg="cyan") + space + rest


def _step_option(option: options.Option) -> click.Option:
    if option.bare is None:
        return click.Option([f"--{option.name}"], metavar=option.arg, help=option.help)
    return OptionalValue(
        [f"--{option.name}"], metavar=f"[{option.arg}]", help=option.help, is_flag=False, flag_value=option.bare
    )


explain = OrderedCommand(
    "explain",
    callback=_explain,
    params=[
        *click_options(),
        *[_step_option(options.BY_NAME[name]) for name in STEPS],
        click.Argument(["words"], nargs=-1, type=click.Path(readable=False), metavar="IMAGE [OPTIONS]"),
    ],
    help=_explain.__doc__,
)
