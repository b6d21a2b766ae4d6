# SPDX-License-Identifier: Apache-2.0
"""`slurm-ch run`, or `ch-run` if that is installed: run a command in a container, without the plugin."""

from __future__ import annotations

import os

import click

from slurm_ch import __version__, log
from slurm_ch.agreement import CH_RUN, EXIT_NO_FEATURE, SLURM_CH
from slurm_ch.engine import ch_join
from slurm_ch.errors import ChError, UsageError
from slurm_ch.request import parsers, spec
from slurm_ch.request.words import Words
from slurm_ch.standalone import features
from slurm_ch.standalone import run as runner

from .options import OrderedCommand, click_options, image_and_command, locate_image


@click.pass_context
def _run(ctx: click.Context, /, feature: str | None, test: str | None, **_: object) -> None:
    """Run CMD in a container made from IMAGE.

    IMAGE is a SquashFS file, a directory, the name of a stored image, or a reference like
    docker://ubuntu:24.04, which is pulled if it is not in the cache (see slurm-ch pull). / is the
    host itself. If CMD is a lone hyphen, or is missing after --, the image's own entrypoint and
    command run.

    With --join under srun, all tasks of a step on a node share one container.
    """
    words: Words = ctx.obj
    if feature is not None:
        ctx.exit(features.status(feature))
    if test is not None:
        _log_test(parsers.make("/", words.settings), test)
        return
    image, argv = image_and_command(ctx)
    wanted = parsers.make(image, words.settings, "IMAGE")
    name = CH_RUN if ctx.info_name == CH_RUN else SLURM_CH
    wanted.like_ch_run = name == CH_RUN
    if not argv:
        missing = "Missing argument 'CMD'."
        raise UsageError(f"{missing} (see {CH_RUN} --help)") if wanted.like_ch_run else click.UsageError(missing, ctx)
    environment = ch_join.given_environment()
    locate_image(wanted, environment)
    if wanted.join:
        runner.become_static(name, wanted, words)
    runner.run(wanted, argv, environment)


def _log_test(wanted: spec.Spec, test: str) -> None:
    """Print a message of each level that the options show."""
    if test not in ("log", "log-fail"):
        raise UsageError(f"--test={test}: neither log nor log-fail")
    runner.configure_log(wanted, os.environ)
    log.debug("a line of detail (-vv)")
    log.info("a line of information (-v)")
    log.warning("a line of warning (hidden by -qq)")
    if test == "log-fail":
        raise ChError("a failure, as --test=log-fail asks for")


def _usage(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(ctx.get_usage())
        ctx.exit()


def _version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        if ctx.info_name == CH_RUN:
            # Scripts expect a plain number, on standard error as ch-run prints it.
            click.echo(__version__, err=True)
        else:
            click.echo(f"slurm-ch, version {__version__}")
        ctx.exit()


_OWN_OPTIONS: list[click.Parameter] = [
    click.Option(
        ["--feature"],
        metavar="FEAT",
        help=f"Exit with 0 if this feature is available, else with {EXIT_NO_FEATURE}: {', '.join(features.CHECKS)}.",
    ),
    click.Option(["--test"], metavar="TEST", help="log: print a message of each kind; log-fail: and then fail."),
    click.Option(
        ["-V", "--version"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_version,
        help="Show the version and exit.",
    ),
    click.Option(["--usage"], is_flag=True, is_eager=True, expose_value=False, callback=_usage, help="Show the usage."),
]

run: click.Command = OrderedCommand(
    "run",
    callback=_run,
    params=[
        *click_options(),
        *_OWN_OPTIONS,
        click.Argument(["words"], nargs=-1, type=click.Path(readable=False), metavar="IMAGE [--] CMD..."),
    ],
    help=_run.__doc__,
    context_settings={"help_option_names": ["-?", "-h", "--help"]},
)
