# SPDX-License-Identifier: Apache-2.0
"""Check the library's arguments: TypeError or UsageError, each a line that names the argument."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from ..agreement import JOIN_SECONDS_MAX
from ..engine.action import Hooks
from ..errors import UsageError
from ..request import parsers
from ..request.compatibility import Compatibility
from ..request.options import Setting
from ..request.spec import MOUNT_FLAGS, Bind, Spec

_WORD = (str, bytes, os.PathLike)
_FIELDS_OF_TEXT = (
    "broadcast", "cd", "cdi_dirs", "image_directory", "join_tag", "located", "mount_point", "overlay", "platform",
    "pull", "save", "storage", "write_fake",
)  # fmt: skip
_FIELDS_OF_NUMBERS = ("gid", "join_count", "join_pid", "uid")
_FIELDS_OF_SEVERAL = ("binds", "devices", "env_rules", "relay_commands", "unshare")
_FIELDS_OF_PAIRS = ("labels", "relay_defaults")
_YES_NO_OR_NONE = ("color", "image_env", "relay")
# The options whose rules a field's value has to follow.
_LIKE_OPTIONS = {
    "gid": "gid", "join_count": "join-ct", "join_pid": "join-pid", "join_tag": "join-tag", "platform": "platform",
    "pull": "pull", "uid": "uid", "write_fake": "write-fake",
}  # fmt: skip
_ENV_RULES = ("file", "file0", "literal", "set", "set-anywhere", "unset")


def wrong_type(name: str, expected: str, value: object) -> TypeError:
    """Return the exception for an argument of a wrong type."""
    return TypeError(f"{name}: expected {expected}, not {type(value).__name__}")


def path(name: str, value: object) -> str:
    """Return a path as str; TypeError if it isn't one, UsageError for a NUL in it."""
    if not isinstance(value, _WORD):
        raise wrong_type(name, "a path", value)
    text = os.fsdecode(value)
    if "\0" in text:
        raise UsageError(f"{name}={text!r}: has a NUL in it")
    return text


def command(argv: object) -> list[str]:
    """Return a command's words as a list of str; TypeError or UsageError if it isn't a command."""
    if isinstance(argv, _WORD) or not isinstance(argv, Iterable):
        raise wrong_type("argv", "a list of words", argv)
    words = list(argv)
    if not words:
        raise UsageError("argv: the command is missing")
    for number, word in enumerate(words):
        if not isinstance(word, _WORD):
            raise wrong_type(f"argv[{number}]", "a str or a path", word)
        if "\0" in os.fsdecode(word):
            raise UsageError(f"argv[{number}]={os.fsdecode(word)!r}: has a NUL in it")
    return [os.fsdecode(word) for word in words]


def environment(env: object) -> list[tuple[str, str]]:
    """Return the environment rules for `env`, a dict of names and values, None to unset a variable."""
    if not isinstance(env, Mapping):
        raise wrong_type("env", "a dict", env)
    rules = []
    for name, value in env.items():
        if not isinstance(name, str):
            raise wrong_type("env", "names that are str", name)
        if not name or "=" in name or "\0" in name:
            raise UsageError(f"env: {name!r} can't be a variable's name")
        if value is None:
            rules.append(("unset", "".join(f"\\{one}" if one in "\\*?[]+@!(|)" else one for one in name)))
        elif not isinstance(value, str):
            raise wrong_type(f"env[{name!r}]", "a str or None", value)
        elif "\0" in value:
            raise UsageError(f"env[{name!r}]={value!r}: has a NUL in it")
        else:
            rules.append(("literal", f"{name}={value}"))
    return rules


def hooks(given: object) -> list[Hooks]:
    """Return the hooks as a list; TypeError or UsageError if one is invalid."""
    if not isinstance(given, Iterable):
        raise wrong_type("hooks", "a list of Hooks", given)
    found = list(given)
    for one in found:
        if not isinstance(one, Hooks):
            raise wrong_type("hooks", "Hooks in the list", one)
        if one.when not in ("host", "guest", "all"):
            raise UsageError(f"hooks run at host, guest or all, not at {one.when}")
    return found


def spec(given: Spec) -> Spec:
    """Check the fields of a Spec that was made by hand, and return it; TypeError or UsageError names a wrong one."""
    given.image = path("image", given.image)
    if not given.image and given.join_pid is None:
        raise UsageError("image: an image is required")
    usual = Spec("/")
    for name in Spec.__slots__:
        value = getattr(given, name)
        _type_of_field(name, value, getattr(usual, name))
        if value is not None and name in _LIKE_OPTIONS:
            parsers.make("/", [Setting(_LIKE_OPTIONS[name], str(value), name)])
    if not 0 < given.join_timeout <= JOIN_SECONDS_MAX:
        raise UsageError(f"join_timeout={given.join_timeout}: not above 0 and up to {JOIN_SECONDS_MAX}")
    _binds(given.binds)
    _pairs("devices", given.devices)
    for value, _ in given.devices:
        parsers.make("/", [Setting("device", value, "devices")])
    _env_rules(given.env_rules)
    for kind in given.unshare:
        if kind not in parsers.NAMESPACES:
            raise UsageError(f"unshare={kind}: not one of {', '.join(parsers.NAMESPACES)}")
    return given


def _type_of_field(name: str, value: object, usual: object) -> None:
    if name in _FIELDS_OF_TEXT and not (value is None or isinstance(value, str)):
        raise wrong_type(name, "a str or None", value)
    if isinstance(value, str) and "\0" in value:
        raise UsageError(f"{name}={value!r}: has a NUL in it")
    if name in _FIELDS_OF_SEVERAL and not isinstance(value, (list, tuple)):
        raise wrong_type(name, "a list or a tuple", value)
    if name in _FIELDS_OF_PAIRS and not isinstance(value, Mapping):
        raise wrong_type(name, "a dict", value)
    if name == "compatibility" and not (value is None or isinstance(value, Compatibility)):
        raise wrong_type(name, "a Compatibility or None", value)
    if name in _FIELDS_OF_NUMBERS and not (value is None or type(value) is int):
        raise wrong_type(name, "an int or None", value)
    if name in _YES_NO_OR_NONE and not (value is None or isinstance(value, bool)):
        raise wrong_type(name, "a bool or None", value)
    if isinstance(usual, bool) and not isinstance(value, bool):
        raise wrong_type(name, "a bool", value)
    if type(usual) in (int, float) and type(value) not in (int, float):
        raise wrong_type(name, "a number", value)


def _binds(given: Any) -> None:
    for one in given:
        if not isinstance(one, Bind):
            raise wrong_type("binds", "Binds in the list", one)
        if not isinstance(one.src, str) or not isinstance(one.dst, str):
            raise wrong_type("binds", "Binds of two str", one.dst if isinstance(one.src, str) else one.src)
        if not one.dst.startswith("/"):
            raise UsageError(f"binds={one!r}: the destination is not absolute")
        if not set(one.flags) <= set(MOUNT_FLAGS):
            raise UsageError(f"binds={one!r}: the flags are {', '.join(MOUNT_FLAGS)}")


def _pairs(name: str, given: Any) -> None:
    for pair in given:
        if not isinstance(pair, tuple) or len(pair) != 2 or not all(isinstance(one, str) for one in pair):
            raise wrong_type(name, "pairs of two str", pair)


def _env_rules(given: Any) -> None:
    _pairs("env_rules", given)
    for rule in given:
        if rule[0] not in _ENV_RULES:
            raise UsageError(f"env_rules={rule!r}: the first is not one of {', '.join(_ENV_RULES)}")
