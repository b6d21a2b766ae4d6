# SPDX-License-Identifier: Apache-2.0
"""Print ch-join's table of the options of `slurm-ch run` as C, from slurm_ch/request."""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../.."))

from slurm_ch.request import options, words


def kind(option: options.Option) -> str:
    """Return how an option takes its value: enum kind in words.c."""
    if option.name in words.PULLING:
        return "PYTHONS"
    if option.kind == options.FLAG:
        return "NO_VALUE"
    if option.name in words.LEVELS:
        return "LEVEL"
    return "VALUE" if option.bare is None else "ATTACHED_VALUE"


def row(name: str, short: str, how: str, each: bool) -> str:
    """Return one row of the table."""
    letter = f"'{short}'" if short else "0"
    return f'{{ "{name}", {letter}, {how}, {str(each).lower()} }},'


if __name__ == "__main__":
    print("/* Generated from slurm_ch/request/options.py and words.py. */")
    for one in words.TABLE.values():
        print(row(one.name, one.short, kind(one), one.name in options.OF_EACH_TASK))
    for own in words.OWN:
        print(row(own, "", "PYTHONS", False))
