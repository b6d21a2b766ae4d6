# SPDX-License-Identifier: Apache-2.0
"""`slurm-ch push`: a SquashFS file to a registry."""

from __future__ import annotations

import os

import click

from slurm_ch import log
from slurm_ch.images import push as images
from slurm_ch.images import reference

from . import pulling


@click.command()
@click.option(
    "--squashfs",
    is_flag=True,
    help="Push FILE as it is. Only slurm-ch can run the pushed image, without packing it again.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.option("-v", "--verbose", count=True, help="Report what is done.")
@click.argument("file", type=click.Path(), metavar="FILE")
@click.argument("ref", metavar="docker://REF")
def push(*, squashfs: bool, quiet: bool, verbose: int, file: str, ref: str) -> None:
    """Push the SquashFS image FILE to a registry, as an image with one layer.

    The image's environment, command, working directory and labels are taken from the files in FILE's /ch.
    """
    log.configure(level=log.NO_WARNINGS if quiet else verbose)
    wanted = reference.parse(ref)
    env = dict(os.environ)
    one = pulling.puller(env, quiet=quiet)
    images.push(file, wanted, one.store, env, one.progress, as_squashfs=squashfs)
    click.echo(wanted.text)
