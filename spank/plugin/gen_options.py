# SPDX-License-Identifier: Apache-2.0
"""Print the plugin's table of options as C, from slurm_ch/request/options.py and pyxis.py."""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../.."))

from slurm_ch.request import options, parsers, pyxis

_KINDS = {
    options.ONE: "KIND_ONE",
    options.LIST: "KIND_LIST",
    options.FLAG: "KIND_FLAG",
    options.OPTIONAL: "KIND_OPTIONAL",
}

# SPANK_OPTION_MAXLEN: Slurm truncates a longer help text.
_HELP_MAX = 75


def quote(text: str) -> str:
    """Return `text` as a C string literal."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def row(option: options.Option | pyxis.Option, variable: str, name: str, group: str, sure: bool) -> str:
    """Return one row of the table."""
    if len(option.help) > _HELP_MAX:
        raise SystemExit(f"{option.name}: help is longer than {_HELP_MAX} characters")
    arg, bare, whose = (quote(text) if text else "NULL" for text in (option.arg, option.bare, group))
    fields = [variable, quote(name), arg, quote(option.help), bare, _KINDS[option.kind], str(sure).lower()]
    return "OPTION(" + ", ".join([*fields, "PATHS_" + option.paths.upper(), whose]) + ")"


if __name__ == "__main__":
    parsers.check_complete()
    print("/* Generated from slurm_ch/request/. */\n/* VARIABLE, name, arg, help, bare, kind, sure, paths, group */")
    for one in options.OPTIONS:
        if one.where & options.PLUGIN:
            print(row(one, one.variable, "ch-" + one.name, "", one.sure))
    for other in pyxis.OPTIONS:
        print(row(other, other.name.upper().replace("-", "_"), other.name, other.group, False))
