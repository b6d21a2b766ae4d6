# SPDX-License-Identifier: Apache-2.0
"""Parse plugstack.conf's arguments for images, and determine the path of the caller's cache."""

from __future__ import annotations

import os
import re

from ..errors import UsageError

# The user's own place for the cache.
CACHE_VARIABLE = "SLURM_CH_CACHE"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

# When images are pulled. SUBMIT: before a job is queued. AUTO: by srun, or by a step's first node. NODE: only by a
# step's first node. NO: never.
SUBMIT, AUTO, NODE, NO = "submit", "auto", "node", "no"

_THREADS = 4
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


class Settings:
    """The site's settings for pulling images. Times are in seconds, sizes in bytes; None means no limit."""

    __slots__ = (
        "cache", "cache_max", "images", "importer", "packer", "pull", "pull_max", "pull_threads", "pull_timeout",
        "registries",
    )  # fmt: skip

    def __init__(self) -> None:
        self.cache = ""
        self.images: tuple[str, ...] = ()
        self.cache_max: int | None = None
        self.pull = AUTO
        self.registries: tuple[str, ...] = ()
        self.importer: str | None = None
        self.packer: str | None = None
        self.pull_timeout: float | None = None
        self.pull_threads = _THREADS
        self.pull_max: int | None = None


def size(text: str, label: str) -> int:
    """Parse a size like 200G into bytes; UsageError if it is invalid."""
    found = re.fullmatch(r"(\d{1,15})([kmgt]?)(?:i?b)?", text.lower())
    if not found:
        raise UsageError(f"{label}={text}: not a size, such as 200G")
    return int(found[1]) * _UNITS[found[2]]


def duration(text: str, label: str) -> float:
    """Parse a duration like 30d into seconds; UsageError if it is invalid."""
    found = re.fullmatch(r"(\d{1,9})([smhd]?)", text.lower())
    if not found:
        raise UsageError(f"{label}={text}: not a time, such as 90s, 15m, 12h or 30d")
    return float(int(found[1]) * _SECONDS[found[2]])


def parse(arguments: Sequence[tuple[str, str]], env: Mapping[str, str], user: str) -> Settings:
    """Return the Settings for plugstack.conf's arguments, all of them from ARGUMENTS; UsageError names a wrong one.

    `env` and `user` are the caller's, for the cache's path and for %u and %h.
    """
    found = Settings()
    for key, value in arguments:
        label = f"plugstack.conf: {key}"
        if key not in ARGUMENTS:
            raise UsageError(f"{label}={value}: unknown argument")
        meaning = ARGUMENTS[key](value, label, env, user)
        if key in ("images", "registries"):
            meaning = getattr(found, key) + meaning
        setattr(found, key, meaning)
    if not found.cache:
        found.cache = _own_cache(env)
    return found


def _when(text: str, label: str) -> str:
    if text not in (SUBMIT, AUTO, NODE, NO):
        raise UsageError(f"{label}={text}: not one of submit, auto, node, no")
    return text


def _count(text: str, label: str) -> int:
    if not text.isdigit() or not 0 < int(text) <= 1024:
        raise UsageError(f"{label}={text}: not a number from 1 to 1024")
    return int(text)


def _place(text: str, env: Mapping[str, str], user: str, label: str) -> str:
    path = re.sub(r"%(.)", lambda found: _percent(found[1], env, user, f"{label}={text}"), text)
    if not path.startswith("/"):
        raise UsageError(f"{label}={text}: not an absolute path")
    return path


def _percent(letter: str, env: Mapping[str, str], user: str, what: str) -> str:
    # Slurm's own files have the same letters.
    if letter == "u":
        return user
    if letter == "h":
        return env.get("HOME", "/")
    if letter == "%":
        return "%"
    raise UsageError(f"{what}: %{letter} is neither %u (user), %h (home) nor %%")


def _own_cache(env: Mapping[str, str]) -> str:
    if env.get(CACHE_VARIABLE):
        return os.path.abspath(env[CACHE_VARIABLE])
    caches = env.get("XDG_CACHE_HOME") or os.path.join(env.get("HOME") or "/", ".cache")
    return os.path.join(caches, "slurm_ch")


# A parser for each argument: (value, label, the caller's environment, the caller's name) -> setting.
ARGUMENTS: dict[str, Callable[[str, str, Mapping[str, str], str], Any]] = {
    "cache": lambda value, label, env, user: _place(value, env, user, label),
    "images": lambda value, label, env, user: tuple(_place(one, env, user, label) for one in value.split(":") if one),
    "cache_max": lambda value, label, _env, _user: size(value, label),
    "pull": lambda value, label, _env, _user: _when(value, label),
    "registries": lambda value, _label, _env, _user: tuple(one for one in value.split(",") if one),
    "importer": lambda value, label, env, user: _place(value, env, user, label),
    "packer": lambda value, _label, _env, _user: value,
    "pull_timeout": lambda value, label, _env, _user: duration(value, label),
    "pull_threads": lambda value, label, _env, _user: _count(value, label),
    "pull_max": lambda value, label, _env, _user: size(value, label),
}
