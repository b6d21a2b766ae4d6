# SPDX-License-Identifier: Apache-2.0
"""`slurm-ch pull`: an image from a registry or an archive, as a SquashFS file."""

from __future__ import annotations

import os

import click

from slurm_ch import log
from slurm_ch.images import reference, resolve

from . import pulling


@click.command()
@click.option("--pull", "when", type=click.Choice(resolve.MODES), default=resolve.AUTO, show_default=True,
              help="Ask the registry and pull what is missing; pull again; ask nobody; pull nothing.")  # fmt: skip
@click.option("--platform", metavar="OS/ARCH", help="For another kind of machine, such as linux/arm64.")
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
@click.option("-v", "--verbose", count=True, help="Report what is done.")
@click.argument("ref", metavar="REF")
@click.argument("file", required=False, type=click.Path(), metavar="[FILE]")
def pull(*, when: str, platform: str | None, quiet: bool, verbose: int, ref: str, file: str | None) -> None:
    """Pull the image REF into the cache, or into FILE, and print the path.

    REF is docker://[HOST/]NAME[:TAG][@DIGEST], oci:DIR, oci-archive:FILE,
    docker-archive:FILE, docker-daemon:NAME:TAG, containers-storage:NAME or dir:DIR.
    If the digest of an image in the cache has not changed, pulling it again costs one request to the
    registry.
    """
    log.configure(level=log.NO_WARNINGS if quiet else verbose)
    wanted = reference.parse(ref)
    one = pulling.puller(dict(os.environ), platform, quiet)
    if file is None:
        _, path = one.get(wanted, when)
    else:
        one.to_file(wanted, file, when)
        path = file
    click.echo(path)
