# SPDX-License-Identifier: Apache-2.0
"""Shared by the commands about images: the site's settings, and pulling the image of a spec."""

from __future__ import annotations

import os
import pwd
from typing import TYPE_CHECKING

from slurm_ch import log
from slurm_ch.errors import ChError, UsageError
from slurm_ch.images import pull, reference, resolve
from slurm_ch.images import settings as site_settings
from slurm_ch.images.progress import Progress
from slurm_ch.request import parsers, site
from slurm_ch.slurm import plugstack

if TYPE_CHECKING:
    from collections.abc import Mapping

    from slurm_ch.request.spec import Spec


def settings(env: Mapping[str, str]) -> site_settings.Settings:
    """Return the settings for images, from this node's plugstack.conf and the caller's environment."""
    return site_settings.parse(_arguments(env), env, _user(env))


def _user(env: Mapping[str, str]) -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return env.get("USER") or str(os.geteuid())


def _arguments(env: Mapping[str, str]) -> list[tuple[str, str]]:
    pairs = [word.partition("=")[::2] for word in _words(env)]
    return [(key, value) for key, value in pairs if key in site.IMAGE_ARGUMENTS]


def _words(env: Mapping[str, str]) -> list[str]:
    try:
        return plugstack.arguments(env)
    except ChError as error:
        log.debug(f"the site's settings for images: {error}")
        return []


def site_of(env: Mapping[str, str]) -> site.Site:
    """Return the site's settings, from this node's plugstack.conf."""
    return site.parse(_words(env))


def puller(env: Mapping[str, str], platform: str | None = None, quiet: bool = False) -> pull.Puller:
    """Return a Puller with the site's settings and the caller's environment."""
    return pull.Puller(settings(env), env, Progress(quiet=quiet), platform)


def mode(text: str | None, label: str) -> str:
    """Return a value of --pull, or the default for None; UsageError if it is invalid."""
    if text is not None and text not in resolve.MODES:
        raise UsageError(f"{label}={text}: not one of {', '.join(resolve.MODES)}")
    return text or resolve.AUTO


def locate(spec: Spec, env: Mapping[str, str]) -> None:
    """Set `spec.located` to the image's file if the image is a reference; pull it if necessary. ChError on failure."""
    if not reference.is_reference(spec.image):
        parsers.check_nothing_to_pull(spec)
        return
    log.configure(level=spec.verbosity)
    one = puller(env, spec.platform, quiet=spec.verbosity < 0)
    wanted = mode(spec.pull, spec.labels.get("pull", "--pull"))
    resolved, spec.located = one.get(reference.parse(spec.image), wanted)
    log.info(f"{resolved.pinned}: {spec.located}")
