# SPDX-License-Identifier: Apache-2.0
"""Options as Python's keyword arguments."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..request.options import BY_NAME, FLAG, LIST, Option, Setting
from ..request.spec import Bind
from .arguments import wrong_type

if TYPE_CHECKING:
    from collections.abc import Mapping


def settings(options: Mapping[str, object], where: int) -> list[Setting]:
    """Return the settings for `options`, by their names with "_" for "-"; TypeError if there is no such option."""
    found = []
    for name, value in options.items():
        option = BY_NAME.get("bind" if name == "binds" else name.replace("_", "-"))
        if option is None or not option.where & where or "-" in name:
            raise TypeError(f"there is no option {name!r}")
        found += [Setting(option.name, text, name) for text in _texts(option, name, value)]
    return found


def _texts(option: Option, name: str, value: object) -> Iterable[str]:
    if value is None or (value is False and option.kind != FLAG):
        return ()
    if isinstance(value, bool):
        if option.bare is None:
            raise UsageError(f"{name}={value}: the option needs a value")
        return (option.bare if value else "no",)
    if option.kind == LIST and isinstance(value, dict):
        return tuple(f"{key}={text}" for key, text in value.items())
    if option.kind == LIST and not isinstance(value, (str, os.PathLike, Bind)):
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
