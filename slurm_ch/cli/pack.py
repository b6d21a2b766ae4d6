# SPDX-License-Identifier: Apache-2.0
"""`slurm-ch pack`: a SquashFS file from a directory."""

from __future__ import annotations

import os

import click

from slurm_ch import log
from slurm_ch.images import directory, pack_file

from . import pulling


@click.command()
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
@click.option("-v", "--verbose", count=True, help="Say what is done.")
@click.argument("source", type=click.Path(), metavar="DIR")
@click.argument("file", type=click.Path(), metavar="FILE")
def pack(*, quiet: bool, verbose: int, source: str, file: str) -> None:
    """Make the SquashFS image FILE from the directory DIR.

    Everything in it belongs to root and can be read by whoever runs it, as in an
    image that was pulled; the places that a container mounts at are added.
    """
    log.configure(level=log.NO_WARNINGS if quiet else verbose)
    one = pulling.puller(dict(os.environ), quiet=quiet)
    pack_file.write(directory.read(source), file, one.settings, one.progress)
    click.echo(file)
