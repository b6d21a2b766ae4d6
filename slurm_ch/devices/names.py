# SPDX-License-Identifier: Apache-2.0
"""Names of the Container Device Interface: kinds of devices, devices, and what a user may request."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_DIRECTORIES = "/etc/cdi:/var/run/cdi"

_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_DIGITS = frozenset("0123456789")
_ALPHANUMERIC = _LETTERS | _DIGITS

EVERY = "all"  # every device of every kind
NONE = "none"  # no device, instead of a site's default

WHAT = (
    "neither a device (VENDOR/CLASS, VENDOR/CLASS=NAME, all) nor a file (begins with / or ., ends with .json or .yaml)"
)


def _is_name(text: str, first: frozenset[str], inside: str) -> bool:
    return (
        0 < len(text) <= 253
        and text[0] in first
        and text[-1] in _ALPHANUMERIC
        and all(letter in _ALPHANUMERIC or letter in inside for letter in text)
    )


def is_kind(text: str) -> bool:
    """Whether `text` is a kind of devices: `vendor.com/class`."""
    vendor, _, kind = text.partition("/")
    return _is_name(vendor, _LETTERS, "_-.") and _is_name(kind, _LETTERS, "_-.") and len(kind) <= 63


def is_device(text: str) -> bool:
    """Whether `text` can be a device's name within its kind."""
    return _is_name(text, _ALPHANUMERIC, "_-.:")


def is_file(text: str) -> bool:
    """Whether a user's `text` means a spec file."""
    return text.startswith(("/", ".")) or text.endswith((".json", ".yaml"))


def split(text: str) -> tuple[str, str | None]:
    """Return kind and name of a device, with None as name for all of the kind; ValueError if `text` is invalid."""
    kind, equals, name = text.partition("=")
    if not is_kind(kind) or (equals and not is_device(name)):
        raise ValueError(text)
    return kind, name if equals else None


def directories(option: str | None, environment: Mapping[str, str]) -> list[str]:
    """Return the directories of specs: from the option, from CH_RUN_CDI_DIRS, or the standard ones."""
    text = option or environment.get("CH_RUN_CDI_DIRS") or DEFAULT_DIRECTORIES
    return [part for part in text.split(":") if part]
