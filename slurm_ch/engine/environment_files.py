# SPDX-License-Identifier: Apache-2.0
"""Read environment files of the host and of the image, and split them into assignments."""

from __future__ import annotations

import _stat as stat

from .. import lean_os as os
from .. import log
from ..errors import ChError, UsageError, describe
from . import places

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .action import Build

# A message shows at most this many characters of a wrong line.
SHOWN = 80

_BYTE_ORDER_MARK = "\ufeff"
# The byte order marks of UTF-16, as surrogateescape decodes them.
_UTF16 = ("\udcff\udcfe", "\udcfe\udcff")

# More than the kernel passes on to any command.
_ENVIRONMENT_FILE_MAX = 4 << 20
_OPENED = ("/dev/fd/", "/proc/self/fd/")


def parse_file(text: str, given: str, separator: str = "\n", either_quotes: bool = True) -> list[str]:
    """Return the assignments of an environment file: one per line, without blank lines and comments.

    Leading blanks, a leading `export`, a carriage return at the end, a byte order mark, and one pair of
    quotes around the value are removed. If the `separator` is NUL, each entry is an assignment as it
    stands; it may contain newlines. UsageError names the line that is not an assignment, and the option
    as it was `given`.
    """
    if separator == "\n":
        if text.startswith(_UTF16):
            raise UsageError(f"{given}: line 1 is UTF-16; save the file as UTF-8")
        text = text.removeprefix(_BYTE_ORDER_MARK)
    assignments = []
    for number, whole in enumerate(text.split(separator), 1):
        line = _without_decoration(whole) if separator == "\n" else whole
        if not line:
            continue
        name, equals, _ = line.partition("=")
        if not equals or not name:
            raise UsageError(f"{given}: line {number} is not NAME=VALUE: {whole[:SHOWN]}")
        if "\0" in line:
            raise UsageError(f"{given}: line {number} has a NUL in it")
        if not is_name(name):
            raise UsageError(f"{given}: line {number}: the variable's name has a blank in it: {whole[:SHOWN]}")
        if separator == "\n":
            wrong = _shell_only_syntax(whole, name, line[len(name) + 1 :])
            if wrong:
                raise UsageError(f"{given}: line {number}: {wrong}: {whole[:SHOWN]}")
        assignments.append(unquoted(line, either_quotes and separator == "\n"))
    return assignments


def _without_decoration(line: str) -> str:
    """Return a line without leading blanks, `export` and the carriage return; "" for a comment."""
    line = line.removesuffix("\r").lstrip(" \t\r\v\f")
    if line.startswith(("export ", "export\t")):
        return line[len("export ") :].lstrip()
    return "" if line.startswith("#") else line


def _shell_only_syntax(whole: str, name: str, value: str) -> str:
    """Return why a shell would understand the line differently, or ""."""
    if name[-1] == "+":
        return "+= is not understood; write the whole value"
    if name[0] in "'\"":
        return "the variable's name is in quotes"
    if whole.lstrip(" \t\r\v\f").startswith(("export ", "export\t")):
        quote = value[:1] if value[:1] in ("'", '"') else ""
        if value[-1:] != quote if quote else len(value.split()) > 1:
            return "after export, a value with blanks needs quotes, and nothing may follow it"
    return ""


def is_name(name: str) -> bool:
    """Whether `name` is usable for a variable: not empty, and without blanks and control characters."""
    return bool(name) and not any(letter.isspace() or letter < " " for letter in name)


def unquoted(assignment: str, either: bool = False) -> str:
    """Return an assignment without one pair of single quotes around its value; with `either`, of double ones too."""
    name, _, value = assignment.partition("=")
    if len(value) >= 2 and value[0] == value[-1] and value[0] in ("'\"" if either else "'"):
        value = value[1:-1]
    return f"{name}={value}"


def working_directory(metadata: str) -> str:
    """Return the working directory in ch-image's metadata, or "".

    The module json is slow to load. ch-image writes each member on its own line, so the line is found
    as text; only a value with a backslash needs json.
    """
    line = metadata.partition('\n  "cwd": "')[2].partition("\n")[0].rstrip(",")
    if "\\" in line:
        try:
            import json

            line = str(json.loads(f'"{line}')) + '"'
        except (ValueError, ImportError):
            return ""
    return line[:-1] if line.endswith('"') and line.startswith("/") and "\0" not in line else ""


def try_image(build: Build, path: str, given: str) -> str | None:
    """Return the text of the image's file, or None if it is missing or can't be read."""
    try:
        return read_image(build, path, given)
    except ChError as error:
        log.info(f"{path} of the image is left out: {describe(error)}")
        return None


def read_image(build: Build, path: str, given: str) -> str | None:
    """Return the text of the image's file, or None if it is missing; ChError if it can't be read."""
    try:
        return text_of(places.open_file(build, path), path, given)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ChError(f"{given}: can't read environment file") from error


def host_file(full: str, path: str, given: str) -> tuple[str, tuple[int, int]] | None:
    """Return the text of the host's file, and its device and inode; None if there is no such file.

    `full` is the absolute path, `path` as the user wrote it.
    """
    try:
        fd = os.open(full, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        status = os.fstat(fd)
        return text_of(fd, path, given), (status.st_dev, status.st_ino)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ChError(f"{given}: can't read environment file") from error


def text_of(fd: int, path: str, given: str) -> str:
    """Return the text of the file `fd`, and close it; ChError for a FIFO or a device, which may never end.

    A pipe of the shell's <(COMMAND) is allowed, and read to its end.
    """
    with open(fd, "rb") as file:
        kind = os.fstat(fd).st_mode
        if stat.S_ISFIFO(kind) and path.startswith(_OPENED):
            os.set_blocking(fd, True)
        elif not stat.S_ISREG(kind):
            raise ChError(f"{given}: can't read environment file: not a regular file")
        data = file.read(_ENVIRONMENT_FILE_MAX + 1)
    if len(data) > _ENVIRONMENT_FILE_MAX:
        raise UsageError(f"{given}: environment file is larger than {_ENVIRONMENT_FILE_MAX >> 20} MiB")
    return os.fsdecode(data)
