# SPDX-License-Identifier: Apache-2.0
"""`slurm-ch login` and `logout`: credentials for registries, kept where skopeo, podman and docker look."""

from __future__ import annotations

import os

import click

from slurm_ch.errors import UsageError
from slurm_ch.images import login as images


def _host(text: str) -> str:
    host = text[len("docker://") :] if text.startswith("docker://") else text
    if not host or "@" in host or host.startswith("-"):
        raise UsageError(f"{'HOST' if '@' in host else text}: not a registry's name, such as ghcr.io")
    return host


@click.command()
@click.option("-u", "--username", metavar="NAME", help="Your user name in the registry [default: ask for it].")
@click.option("--password-stdin", is_flag=True, help="Read the password, or token, from standard input.")
@click.option(
    "--tls-verify/--no-tls-verify",
    default=True,
    help="Require a valid certificate of the registry, or not [default: require it].",
)
@click.argument("host", metavar="HOST")
def login(*, username: str | None, password_stdin: bool, tls_verify: bool, host: str) -> None:
    """Store your credentials for the registry HOST, so that you can pull and push there.

    The credentials are stored in $REGISTRY_AUTH_FILE, or else in ~/.config/containers/auth.json, where
    jobs find them too. Credentials that `docker login` or `podman login` has stored are also found.
    """
    options = [f"--username={username}"] if username else []
    options += ["--password-stdin"] if password_stdin else []
    options += [] if tls_verify else ["--tls-verify=false"]
    images.login(_host(host), os.environ, options)


@click.command()
@click.argument("host", metavar="HOST")
def logout(*, host: str) -> None:
    """Remove your stored credentials for the registry HOST."""
    images.logout(_host(host), os.environ)
