# SPDX-License-Identifier: Apache-2.0
"""Lines on standard error: one prefix, four levels, nothing buffered.

The standard library's logging costs more than the whole launcher may.
"""

from __future__ import annotations

from . import lean_os as os

NO_WARNINGS = -2
WARNING = 0
INFO = 1
DEBUG = 2

_level = WARNING
_prefix = "slurm-ch: "
_colored = False
_fd = 2

# ANSI's select graphic rendition, as ch-run has it: red, and yellow for less.
_COLORS = {"error": "31", "warning": "31", "info": "33", "debug": "36"}


def configure(
    level: int | None = None, node: str | None = None, color: bool | None = None, fd: int | None = None
) -> None:
    """Set what is shown (`NO_WARNINGS` to `DEBUG`), the node that lines name, whether in color, and where they go."""
    global _level, _prefix, _colored, _fd
    if fd is not None:
        _fd = fd
    if color is not None:
        _colored = color
    if level is not None:
        _level = level
    if node is not None:
        _prefix = f"slurm-ch: {node}: " if node else "slurm-ch: "
    if fd is not None:
        _fd = fd


def level() -> int:
    """Return the level in force."""
    return _level


def target() -> tuple[int, str]:
    """Return where lines go, and what they begin with."""
    return _fd, _prefix


def colored() -> bool:
    """Whether lines are in color."""
    return _colored


def on_terminal() -> bool:
    """Whether lines go to a terminal."""
    return os.isatty(_fd)


def printable(text: str) -> str:
    """Return `text` with what could steer a terminal, or isn't text at all, as an escape."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def line(kind: str, text: str) -> str:
    """Return the line that says `text`."""
    whole = printable(f"{_prefix}{kind}: {text}")
    return f"\033[0;{_COLORS[kind]}m{whole}\033[0m\n" if _colored else whole + "\n"


def _write(kind: str, text: str) -> None:
    try:
        os.write(_fd, line(kind, text).encode())
    except OSError:
        # Nobody listens; there is no better place to say so.
        pass


def error(text: str) -> None:
    """Show a failure; always shown."""
    _write("error", text)


def warning(text: str) -> None:
    """Show something odd that doesn't stop us."""
    if _level > NO_WARNINGS:
        _write("warning", text)


def info(text: str) -> None:
    """Show what `-v` asks for."""
    if _level >= INFO:
        _write("info", text)


def debug(text: str) -> None:
    """Show what `-vv` asks for."""
    if _level >= DEBUG:
        _write("debug", text)
