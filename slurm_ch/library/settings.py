# SPDX-License-Identifier: Apache-2.0
"""Convert keyword arguments to options."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from ..errors import UsageError
from ..request.options import BY_NAME, LIST, Option, Setting
from ..request.spec import Bind
from .arguments import wrong_type


def settings(options: Mapping[str, object], where: int) -> list[Setting]:
    """Return the settings for `options`, named with "_" for "-"; TypeError if there is no such option.

    `where`: PLUGIN or COMMAND.
    """
    found = []
    for name, value in options.items():
        option = BY_NAME.get("bind" if name == "binds" else name.replace("_", "-"))
        if option is None or not option.where & where or "-" in name:
            raise TypeError(f"there is no option {name!r}")
        found += [Setting(option.name, text, name) for text in _texts(option, name, value)]
    return found


def _texts(option: Option, name: str, value: object) -> Iterable[str]:
    if value is None:
        return ()
    if isinstance(value, bool):
        if option.bare is None or (option.kind == LIST and not value):
            raise UsageError(f"{name}={value}: the option needs a value")
        # Of the others, False is a value too: it wins over a default, and may contradict another option.
        return (option.bare if value else "0" if option.bare.isdigit() else "no",)
    if option.name in ("set-env", "set-env0") and isinstance(value, Mapping):
        return tuple(f"{_text(name, key)}={_text(name, text)}" for key, text in value.items())
    if option.kind == LIST and not isinstance(value, (str, bytes, os.PathLike, Bind, Mapping)):
        if not isinstance(value, Iterable):
            raise wrong_type(name, "one or several values", value)
        return tuple(_text(name, one) for one in value)
    return (_text(name, value),)


def _text(name: str, value: object) -> str:
    if isinstance(value, Bind):
        flags = f":{'+'.join(value.flags)}" if value.flags else ""
        return ":".join(str(one).replace(":", "\\:") for one in (value.src, value.dst)) + flags
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if not isinstance(value, (str, int, float)):
        raise wrong_type(name, "a str, a number or a path", value)
    return str(value)
