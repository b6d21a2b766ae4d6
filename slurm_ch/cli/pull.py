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
              help="auto: pull if the cache lacks the image that the registry names; always: pull again; cached: use"
              " the cache and don't ask the registry; never: ask, but fail if the cache lacks the image.")  # fmt: skip
@click.option("--platform", metavar="OS/ARCH", help="Pull the image for this platform, such as linux/arm64.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.option("-v", "--verbose", count=True, help="Report what is done.")
@click.argument("ref", metavar="REF")
@click.argument("file", required=False, type=click.Path(), metavar="[FILE]")
def pull(*, when: str, platform: str | None, quiet: bool, verbose: int, ref: str, file: str | None) -> None:
    """Pull the image REF into your cache, or into FILE, and print the path of the file.

    An image that is in the cache with the digest that the registry names is not pulled again.
    REF is one of these:

    \b
    docker://[HOST/]NAME[:TAG][@DIGEST]
    oci:DIR[:NAME]
    oci-archive:FILE[:NAME]
    docker-archive:FILE[:NAME]
    docker-daemon:NAME:TAG
    containers-storage:NAME
    dir:DIR
    """  # noqa: D301 (click's mark)
    log.configure(level=log.NO_WARNINGS if quiet else verbose)
    wanted = reference.parse(ref)
    one = pulling.puller(dict(os.environ), platform, quiet)
    if file is None:
        _, path = one.get(wanted, when)
    else:
        one.to_file(wanted, file, when)
        path = file
    click.echo(path)
