# SPDX-License-Identifier: Apache-2.0
"""Messages on standard error: one prefix, four levels, no buffer.

The standard library's logging takes longer to load than the whole launcher may take.
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

# ANSI color codes. Errors, warnings and notes have ch-run's colors.
_COLORS = {"error": "31", "warning": "31", "info": "33", "debug": "36"}


def configure(
    level: int | None = None, node: str | None = None, color: bool | None = None, fd: int | None = None
) -> None:
    """Set the level (`NO_WARNINGS` to `DEBUG`), the prefix's node, color and descriptor; None changes nothing."""
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
    """Return the current level."""
    return _level


def target() -> tuple[int, str]:
    """Return the descriptor that messages are written to, and their prefix."""
    return _fd, _prefix


def colored() -> bool:
    """Whether messages are colored."""
    return _colored


def on_terminal() -> bool:
    """Whether messages go to a terminal."""
    return os.isatty(_fd)


def printable(text: str) -> str:
    """Return `text` with control characters, and bytes that are not UTF-8, as escapes."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def line(kind: str, text: str) -> str:
    """Return the whole line for a message of this kind."""
    whole = printable(f"{_prefix}{kind}: {text}")
    return f"\033[0;{_COLORS[kind]}m{whole}\033[0m\n" if _colored else whole + "\n"


def _write(kind: str, text: str) -> None:
    try:
        os.write(_fd, line(kind, text).encode())
    except OSError:
        # Nobody reads the messages, and there is no other place to report that.
        pass


def error(text: str) -> None:
    """Write an error message; at all levels."""
    _write("error", text)


def warning(text: str) -> None:
    """Write a warning, unless the level is NO_WARNINGS."""
    if _level > NO_WARNINGS:
        _write("warning", text)


def info(text: str) -> None:
    """Write a message for `-v`."""
    if _level >= INFO:
        _write("info", text)


def debug(text: str) -> None:
    """Write a message for `-vv`."""
    if _level >= DEBUG:
        _write("debug", text)
