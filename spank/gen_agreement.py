# SPDX-License-Identifier: Apache-2.0
"""Print agreement.h, from slurm_ch/agreement.py: its assignments as macros, its comments as comments."""

from __future__ import annotations

import ast
import os
import sys

SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../slurm_ch/agreement.py")


def quote(text: str) -> str:
    """Return `text` as a C string literal."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def literal(name: str, value: object) -> str:
    """Return `value` as C has it: a number, a record's kind as a character, a string, or a list of strings."""
    if isinstance(value, int):
        return str(value)
    if isinstance(value, tuple):
        return ", ".join(quote(word) for word in value)
    if not isinstance(value, str):
        raise SystemExit(f"agreement.py: {name}: neither number, string nor strings")
    return f"'{value}'" if len(value) == 1 else quote(value)


def macros(source: str) -> list[str]:
    """Return the header's lines for the source of agreement.py."""
    tree = ast.parse(source)
    found: list[tuple[int, str]] = []
    for node in tree.body[1:]:
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
            raise SystemExit(f"agreement.py: line {node.lineno}: not an assignment")
        name = node.targets[0].id
        found.append((node.lineno, f"#define {name} {literal(name, ast.literal_eval(node.value))}"))
    for number, line in enumerate(source.split("\n"), 1):
        _, mark, comment = line.partition("# ")
        if mark and number > 1:
            found.append((number, f"/* {comment} */"))
    lines: dict[int, str] = {}
    for number, text in found:
        lines[number] = f"{lines[number]} {text}" if number in lines else text
    first, last = tree.body[1].lineno - 1, max(lines)
    return [lines.get(number, "") for number in range(first, last + 1)]


if __name__ == "__main__":
    sys.stdout.write("/* Generated from slurm_ch/agreement.py. */\n#ifndef AGREEMENT_H\n#define AGREEMENT_H\n\n")
    with open(SOURCE, encoding="utf-8") as file:
        sys.stdout.write("\n".join(macros(file.read())) + "\n\n#endif\n")
