# SPDX-License-Identifier: Apache-2.0
"""The `slurm-ch` command and the one place that prints its errors."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

import click

from slurm_ch import log
from slurm_ch.agreement import CH_RUN, EXIT_SETUP, EXIT_USAGE
from slurm_ch.errors import describe, exit_code

COMMANDS = {
    "run": "Run a command in a container.",
    "explain": "Show how a container would be made, without making it.",
    "enter": "Run a shell or a command in a container of a running job.",
    "ps": "List the containers of your running jobs.",
    "pull": "Pull an image from a registry or an archive into your cache or a file.",
    "push": "Push a SquashFS image to a registry.",
    "pack": "Make a SquashFS image from a directory or a container.",
    "images": "List the images in your cache.",
    "rm": "Remove images from your cache, or containers with a name.",
    "prune": "Remove unused images from your cache.",
    "login": "Store your credentials for a registry.",
    "logout": "Remove your credentials for a registry.",
    "doctor": "Find what would make a step fail on this node.",
    "sandbox": "Run a command in a temporary Slurm cluster on this machine.",
}

# Commands that share a module.
_MODULES = {"rm": "images", "prune": "images", "logout": "login"}


class _Lazy(click.Group):
    """Loads only the module of the subcommand that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"slurm_ch.cli.{_MODULES.get(cmd_name, cmd_name)}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS)
            meant = f" Did you mean {' or '.join(near)}?" if near else ""
            raise click.UsageError(f"No such command {args[0]!r}.{meant}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from slurm_ch.doctor import parts

        click.echo(f"slurm-ch, version {parts.version()}")
        ctx.exit()


@click.group(cls=_Lazy, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Show the version and the commit.",
)
@click.pass_context
def slurm_ch(ctx: click.Context) -> None:
    """Run Slurm job steps in unprivileged containers."""
    # Not by click's no_args_is_help: its exit status is an error since click 8.2, and was none before.
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> None:
    """Run the command line of `slurm-ch`."""
    _call(slurm_ch, "slurm-ch")


def ch_run() -> None:
    """Run the command line of `ch-run`: `slurm-ch run` under the name that existing scripts use."""
    from .run import run

    # As with ch-run, all errors have one exit code, except those in the form of the options.
    _call(run, CH_RUN, lambda error: EXIT_SETUP)


def _call(command: click.Command, name: str, code: Callable[[BaseException], int] = exit_code) -> None:
    """Run a command and exit; an error prints one line on standard error, and `code` returns its exit status."""
    try:
        sys.exit(command.main(prog_name=name, standalone_mode=False) or 0)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else name
        log.error(f"{error.format_message()} (see {where} --help)")
        sys.exit(EXIT_USAGE)
    except click.Abort:
        sys.exit(130)
    except Exception as error:
        if not getattr(error, "silent", False):
            log.error(str(error) if getattr(error, "has_log", False) else describe(error))
        sys.exit(code(error))
