# SPDX-License-Identifier: Apache-2.0
"""What the commands about images share: the site's settings, and a reference that becomes a file."""

from __future__ import annotations

import os
import pwd
from typing import TYPE_CHECKING

from slurm_ch import log, slurm_conf
from slurm_ch.errors import ChError, UsageError
from slurm_ch.images import pull, reference, resolve
from slurm_ch.images import settings as site_settings
from slurm_ch.images.progress import Progress
from slurm_ch.request import site
from slurm_ch.slurm import plugstack

if TYPE_CHECKING:
    from collections.abc import Mapping

    from slurm_ch.request.spec import Spec


def settings(env: Mapping[str, str]) -> site_settings.Settings:
    """Return what plugstack.conf of this node says about images, and where the caller's cache is."""
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
    conf = slurm_conf.path(env)
    if conf is None:
        return []
    try:
        entries = list(plugstack.entries(plugstack.path_of(conf, slurm_conf.settings(conf))))
    except ChError as error:
        log.debug(f"the site's settings for images: {error}")
        return []
    return [word for entry in entries[:1] for word in entry.arguments]


def site_of(env: Mapping[str, str]) -> site.Site:
    """Return what plugstack.conf of this node says."""
    return site.parse(_words(env))


def puller(env: Mapping[str, str], platform: str | None = None, quiet: bool = False) -> pull.Puller:
    """Return what pulls for the caller."""
    return pull.Puller(settings(env), env, Progress(quiet=quiet), platform)


def mode(text: str | None, label: str) -> str:
    """Return a value of --pull; UsageError if it is none."""
    if text is not None and text not in resolve.MODES:
        raise UsageError(f"{label}={text}: not one of {', '.join(resolve.MODES)}")
    return text or resolve.AUTO


def locate(spec: Spec, env: Mapping[str, str]) -> None:
    """Find, or pull, the image of a spec that names it by a reference; a path stays what it is."""
    if not reference.is_reference(spec.image):
        if spec.pull is not None or spec.platform is not None:
            label = spec.labels["pull" if spec.pull is not None else "platform"]
            raise UsageError(f"{label}: {spec.image} is not a reference, so nothing is pulled")
        return
    log.configure(level=spec.verbosity)
    one = puller(env, spec.platform, quiet=spec.verbosity < 0)
    wanted = mode(spec.pull, spec.labels.get("pull", "--pull"))
    resolved, spec.located = one.get(reference.parse(spec.image), wanted)
    log.info(f"{resolved.pinned}: {spec.located}")
