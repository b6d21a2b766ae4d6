# SPDX-License-Identifier: Apache-2.0
"""`slurm-ch explain`: the plan of a container, without carrying it out."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from slurm_ch import log
from slurm_ch.engine import binds
from slurm_ch.engine import container as engine
from slurm_ch.engine.caller import Caller
from slurm_ch.request import parsers

from . import display
from .options import OrderedCommand, click_options, image_and_command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slurm_ch.engine.action import Action


@click.pass_context
def _explain(ctx: click.Context, /, **_: object) -> None:
    """Show what running in a container made from IMAGE would do, without doing it.

    One action per line. On a terminal, binds are aligned, and optional binds whose source is missing here
    are dimmed.
    """
    image, _command = image_and_command(ctx)
    wanted = parsers.make(image, ctx.obj.settings, "IMAGE")
    if image is not None and ":" in image:
        from .pulling import locate

        locate(wanted, dict(os.environ))
    container = engine.Container(wanted, Caller(dict(os.environ)))
    if display.on_terminal():
        lines = _for_people(container.plan())
    else:
        lines = [log.printable(line) for line in engine.explain(container)]
    for line in lines:
        click.echo(line)


def _for_people(plan: Sequence[Action]) -> list[str]:
    """Return the plan with binds in columns, and what matters least in the background."""
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
        verb, space, rest = line.partition(" ")
        lines.append(display.paint(line, dim=True) if missing else display.paint(verb, fg="cyan") + space + rest)
    return lines


explain = OrderedCommand(
    "explain",
    callback=_explain,
    params=[
        *click_options(),
        click.Argument(["words"], nargs=-1, type=click.Path(readable=False), metavar="IMAGE [OPTIONS]"),
    ],
    help=_explain.__doc__,
)
