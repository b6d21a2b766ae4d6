# SPDX-License-Identifier: Apache-2.0
"""How the tests build our C, and write scripts."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
SPANK = ROOT / "spank"

SANITIZE = [
    "-std=gnu11",
    "-g",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
]


def write_script(path: Path, text: str) -> Path:
    """Write an executable script."""
    path.write_text(text)
    path.chmod(0o755)
    return path
