"""`slurm-ch run`: a command in a container, without the plugin."""

from __future__ import annotations

import os

import click

from slurm_ch import runner, spec
from slurm_ch.options import Setting

from .options import OrderedCommand, click_options, image_and_command


@click.pass_context
def _run(ctx: click.Context, /, words: tuple[str, ...], **_: object) -> None:
    """Run CMD in a container made from IMAGE: a SquashFS file, a directory, or an image's name.

    Under srun, with --join, all tasks of a node share one container.
    """
    settings: list[Setting] = ctx.obj
    by_pid = any(setting.name == "join-pid" for setting in settings)
    image, argv = image_and_command(words, with_image=not by_pid or len(words) > 1)
    wanted = spec.make(image, settings, "IMAGE")
    if not argv:
        raise click.UsageError("Missing argument 'CMD'.", ctx)
    runner.run(wanted, argv, dict(os.environ))


run = OrderedCommand(
    "run",
    callback=_run,
    params=[*click_options(), click.Argument(["words"], nargs=-1, metavar="IMAGE [--] CMD...")],
    help=_run.__doc__,
)
