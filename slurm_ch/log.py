"""Lines on standard error: one prefix, four levels, nothing buffered.

The standard library's logging costs more than the whole launcher may.
"""

from __future__ import annotations

import os

QUIET = -1
WARNING = 0
INFO = 1
DEBUG = 2

_level = WARNING
_prefix = "slurm-ch: "


def configure(level: int | None = None, node: str | None = None) -> None:
    """Set what is shown (`QUIET` to `DEBUG`) and the node that lines name."""
    global _level, _prefix
    if level is not None:
        _level = level
    if node is not None:
        _prefix = f"slurm-ch: {node}: " if node else "slurm-ch: "


def level() -> int:
    """Return the level in force."""
    return _level


def line(kind: str, text: str) -> str:
    """Return the line that says `text`."""
    return f"{_prefix}{kind}: {text}\n"


def _write(kind: str, text: str) -> None:
    try:
        os.write(2, line(kind, text).encode("utf-8", "surrogateescape"))
    except OSError:
        # Nobody listens; there is no better place to say so.
        pass


def error(text: str) -> None:
    """Show a failure; always shown."""
    _write("error", text)


def warning(text: str) -> None:
    """Show something odd that doesn't stop us."""
    if _level >= WARNING:
        _write("warning", text)


def info(text: str) -> None:
    """Show what `-v` asks for."""
    if _level >= INFO:
        _write("info", text)


def debug(text: str) -> None:
    """Show what `-vv` asks for."""
    if _level >= DEBUG:
        _write("debug", text)
