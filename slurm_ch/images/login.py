# SPDX-License-Identifier: Apache-2.0
"""Log in to a registry, and out of it, by skopeo, which asks the user on the terminal."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess

from ..errors import ChError
from . import children, fetch
from .credentials import ENVIRONMENT, login_file
from .reference import DOCKER, Reference

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


def login(host: str, env: Mapping[str, str], options: list[str]) -> None:
    """Run `skopeo login`, which asks for user and password and stores them; ChError if the registry refuses them."""
    path = login_file(env)
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    _interactive("login", host, env, ["--authfile", path, *options])


def logout(host: str, env: Mapping[str, str]) -> None:
    """Run `skopeo logout`, which removes the registry's credentials; ChError if there are none."""
    _interactive("logout", host, env, ["--authfile", login_file(env)])


def _interactive(command: str, host: str, env: Mapping[str, str], options: list[str]) -> None:
    program = shutil.which("skopeo", path=env.get("PATH"))
    if program is None:
        raise ChError(f"skopeo, which does the {command}, is not installed: install the package skopeo")
    kept = {name: env[name] for name in (*ENVIRONMENT, "TERM") if name in env}
    umask = os.umask(0o077)
    # Ctrl-C on the terminal is for skopeo.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        # Standard output is the terminal, on which skopeo asks.
        with children.memory_file() as messages:
            child = subprocess.Popen(
                [program, command, *options, host],
                env=kept,
                stderr=messages,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,  # noqa: PLW1509  no threads
            )
            status = child.wait()
            words = children.last_words(messages)
    finally:
        signal.signal(signal.SIGINT, before)
        os.umask(umask)
    if status < 0:
        raise ChError(f"{host}: the {command} was interrupted")
    if status:
        raise _failure(host, words, env)


def _failure(host: str, words: str, env: Mapping[str, str]) -> ChError:
    registry = Reference(DOCKER, "")
    registry.registry = registry.text = host
    error = fetch.failure(registry, words, env, "/")
    return ChError(f"{host}: {fetch.last_message(words)}") if isinstance(error, fetch.NotThere) else error
