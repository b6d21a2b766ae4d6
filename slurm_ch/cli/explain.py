# SPDX-License-Identifier: Apache-2.0
"""`slurm-ch explain`: the plan of a container, without carrying it out."""

from __future__ import annotations

import os

import click

from slurm_ch import log
from slurm_ch.engine import container as engine
from slurm_ch.engine.caller import Caller
from slurm_ch.request import parsers

from .options import OrderedCommand, click_options, image_and_command


@click.pass_context
def _explain(ctx: click.Context, /, **_: object) -> None:
    """Show what running in a container made from IMAGE would do, one action a line."""
    image, _command = image_and_command(ctx)
    wanted = parsers.make(image, ctx.obj.settings, "IMAGE")
    if image is not None and ":" in image:
        from .pulling import locate

        locate(wanted, dict(os.environ))
    container = engine.Container(wanted, Caller(dict(os.environ)))
    for line in engine.explain(container):
        click.echo(log.printable(line))


explain = OrderedCommand(
    "explain",
    callback=_explain,
    params=[
        *click_options(),
        click.Argument(["words"], nargs=-1, type=click.Path(readable=False), metavar="IMAGE [OPTIONS]"),
    ],
    help=_explain.__doc__,
)
