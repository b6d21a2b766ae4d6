# SPDX-License-Identifier: Apache-2.0
"""Print the plugin's C table of options, from the one in slurm_ch/request/options.py."""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../.."))

from slurm_ch.request import options, parsers

_KINDS = {
    options.ONE: "KIND_ONE",
    options.LIST: "KIND_LIST",
    options.FLAG: "KIND_FLAG",
    options.OPTIONAL: "KIND_OPTIONAL",
}

# SPANK_OPTION_MAXLEN: Slurm cuts what is longer.
_HELP_MAX = 75


def quote(text: str) -> str:
    """Return `text` as a C string literal."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def row(option: options.Option) -> str:
    """Return one row of the table."""
    if len(option.help) > _HELP_MAX:
        raise SystemExit(f"{option.name}: help is longer than {_HELP_MAX} characters")
    has_arg = 2 if option.takes_bare else 1
    arg = quote(option.arg) if option.arg else "NULL"
    fields = [quote("ch-" + option.name), quote(option.variable), arg, quote(option.help)]
    fields += [quote(option.bare), _KINDS[option.kind], str(has_arg)]
    return "{ " + ", ".join(fields) + " },"


if __name__ == "__main__":
    parsers.check_complete()
    print("/* Generated from slurm_ch/request/options.py. */")
    for one in options.OPTIONS:
        if one.where & options.PLUGIN:
            print(row(one))
