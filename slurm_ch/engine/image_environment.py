# SPDX-License-Identifier: Apache-2.0
"""The environment that Apptainer or enroot left in an image: shell scripts, read and not run.

Loaded only for such images. Each script is a list of assignments, as a rule; running a shell of the image's for it
would cost every task, and the image may have none. What only a shell could say is left out, with a warning.
"""

from __future__ import annotations

from .. import agreement, log
from .. import lean_os as os
from ..request.options import APPTAINER_ENVIRONMENT, ENROOT_START
from . import places

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .action import Build
    from .task_plan import Record

    # A file of the image by its path and what to call it, or None; the assignments in a text.
    Read = Callable[[Build, str, str], str | None]
    Parse = Callable[[str, str], list[str]]

# About Apptainer itself: its prompt, its libraries and its apps.
_APPTAINERS_OWN = ("01-base.sh", "94-appsbase.sh", "95-apps.sh", "99-base.sh", "99-runtimevars.sh")
_ENVIRONMENT_FILE = "/etc/environment"
_NAME_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_0123456789")
# The kernel passes on no longer value to a program; A=$A$A would double with each line.
_VALUE_MAX = 1 << 17
# More than it passes on in all.
_VALUES_MAX = 4 << 20
# Of all Apptainer's scripts: far more than it writes.
_SCRIPTS_MAX = 1 << 20
# From here on only a shell knows what is executed.
_COMPOUND = ("if", "for", "while", "until", "case", "{", "function", "exit", "return", "exec")


class _BeyondUs(Exception):
    """What only a shell can say."""


class Script:
    """A shell script's assignments, worked out as far as they don't depend on what only a shell knows.

    `values` has each exported variable's value, with `$NAME` for what the task has, and a backslash before each
    other dollar; `defaults` what counts only where a task has nothing.
    """

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.defaults: dict[str, str] = {}
        self.unset: dict[str, None] = {}
        self.directory = ""
        self.not_understood: list[int] = []  # lines
        self._local: dict[str, str] = {}
        self._room = _VALUES_MAX
        self._text = ""
        self._at = 0

    def read(self, text: str) -> None:
        """Take in a script, behind those before."""
        self._text, self._at = text, 0
        self.not_understood = []
        line, counted = 1, 0
        while self._at < len(text):
            line, counted = line + text.count("\n", counted, self._at), self._at
            try:
                words = self._command()
            except (_BeyondUs, RecursionError):  # ${A:-${A:-${A:- and so on
                self.not_understood.append(line)
                self._skip_line()
                continue
            if words and words[0] in _COMPOUND:
                self.not_understood.append(line)
                return
            try:
                self._carry_out(words)
            except _BeyondUs:
                self.not_understood.append(line)

    def _carry_out(self, words: list[str]) -> None:
        if not words or words[0] in (":", "true", "set", "mkdir"):
            return
        if words[0] == "cd" and len(words) >= 2:
            self.directory = words[1].replace("\\$", "$")
        elif words[0] == "unset":
            for name in words[1:]:
                if name in ("-v", "-f") or not name.isidentifier():
                    continue
                self.values.pop(name, None)
                self.defaults.pop(name, None)
                self._local.pop(name, None)
                self.unset[name] = None
        else:
            exports = words[0] == "export"
            for word in words[1:] if exports else words:
                name, equals, value = word.partition("=")
                if not name.isascii() or not name.isidentifier() or not (equals or exports):
                    raise _BeyondUs
                self._assign(name, value if equals else None, exports)

    def _assign(self, name: str, value: str | None, exports: bool) -> None:
        if value is None:
            if name not in self._local:
                return
            value = self._local.pop(name)
        self._room -= len(name) + len(value)
        if self._room < 0:
            raise _BeyondUs
        if value.startswith("\0"):
            if value[1:].partition("\0")[0] != name:
                raise _BeyondUs
            if name not in self.values:
                self.defaults.setdefault(name, value.rpartition("\0")[2])
            return
        if "\0" in value:
            raise _BeyondUs
        self.defaults.pop(name, None)
        if exports or name in self.values:
            self.values[name] = value
        else:
            self._local[name] = value

    # --- words ---------------------------------------------------------------

    def _command(self) -> list[str]:
        """Return the words of the next command, and move past it."""
        words: list[str] = []
        text = self._text
        while self._at < len(text):
            letter = text[self._at]
            if letter in " \t\r":
                self._at += 1
            elif letter == "\\" and text[self._at + 1 : self._at + 2] == "\n":
                self._at += 2
            elif letter == "#":
                end = text.find("\n", self._at)
                self._at = len(text) if end < 0 else end
            elif letter in "\n;":
                self._at += 1
                return words
            elif text.startswith("&&", self._at) and words[:1] in (["cd"], ["export"], ["true"]):
                self._at += 2
                return words
            elif letter in "&|()<>":
                if words[:1] == ["mkdir"]:
                    self._skip_line()
                    return words
                raise _BeyondUs
            else:
                words.append(self._word())
        return words

    def _skip_line(self) -> None:
        end = self._text.find("\n", self._at)
        self._at = len(self._text) if end < 0 else end

    def _word(self, end: str = " \t\r\n;&|()<>", quoted: bool = False) -> str:
        """Return a word, up to one of the letters `end`, with its quotes taken off."""
        text, parts, room = self._text, [""], _VALUE_MAX
        while self._at < len(text):
            letter = text[self._at]
            room -= len(parts[-1])
            if room < 0:
                raise _BeyondUs
            if letter in end and not quoted:
                break
            self._at += 1
            if letter == '"':
                quoted = not quoted
            elif letter == "'" and not quoted:
                parts.append(self._single_quoted())
            elif letter == "\\":
                parts.append(self._behind_a_backslash(quoted))
            elif letter == "$":
                parts.append(self._dollar())
            elif letter == "`":
                raise _BeyondUs
            else:
                parts.append(letter)
        if quoted:
            raise _BeyondUs
        return "".join(parts)

    def _single_quoted(self) -> str:
        close = self._text.find("'", self._at)
        if close < 0:
            raise _BeyondUs
        inside = self._text[self._at : close]
        self._at = close + 1
        return _literal(inside)

    def _behind_a_backslash(self, quoted: bool) -> str:
        after = self._text[self._at : self._at + 1]
        self._at += 1
        if after == "\n":
            return ""
        return _literal(after if not quoted or after in '$`"\\' else "\\" + after)

    def _dollar(self) -> str:
        """Return what a `$` and the name behind it stand for."""
        text = self._text
        braced = text[self._at : self._at + 1] == "{"
        self._at += braced
        begin = self._at
        while text[self._at : self._at + 1] and text[self._at] in _NAME_LETTERS:
            self._at += 1
        name = text[begin : self._at]
        if not name or name[0].isdigit():
            if not braced and text[self._at : self._at + 1] in ("", " ", "\n", '"', ":", "/"):
                return "\\$"
            raise _BeyondUs
        if not braced:
            return self._value_of(name)
        if text.startswith("}", self._at):
            self._at += 1
            return self._value_of(name)
        for operator in (":-", "-", ":+", "+"):
            if text.startswith(operator, self._at):
                self._at += len(operator)
                other = self._word("}")
                if not text.startswith("}", self._at):
                    raise _BeyondUs
                self._at += 1
                return self._either(name, operator, other)
        raise _BeyondUs

    def _either(self, name: str, operator: str, other: str) -> str:
        if operator.endswith("+"):
            # As in PATH=/x${PATH:+:$PATH}, where an item that is empty goes anyway.
            if other in (f":${{{name}}}", f"${{{name}}}:"):
                return other
            raise _BeyondUs
        known = self.values.get(name, self._local.get(name))
        if known:
            return known
        if "\0" in other:
            raise _BeyondUs
        return f"\0{name}\0{other}"

    def _value_of(self, name: str) -> str:
        if name in self.defaults:
            raise _BeyondUs
        if name in self.unset and name not in self.values and name not in self._local:
            return ""
        return self.values.get(name, self._local.get(name, f"${{{name}}}"))


def _literal(text: str) -> str:
    return text.replace("$", "\\$")


def records(build: Build, read: Read, parse: Parse | None, quiet: bool) -> list[Record] | None:
    """Return what sets the environment that an image of Apptainer's or enroot's has, or None if it has none.

    `parse` makes assignments of what any image may have for its logins; without it, that doesn't count. What is not
    understood is warned of, unless `quiet`.
    """
    found = _apptainer(build, read, quiet)
    return _enroot(build, read, parse, quiet) if found is None else found


def _apptainer(build: Build, read: Read, quiet: bool) -> list[Record] | None:
    try:
        directory = places.open_file(build, APPTAINER_ENVIRONMENT)
    except OSError:
        return None
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(".sh"))
    except OSError:
        return None
    finally:
        os.close(directory)
    script = Script()
    left = _SCRIPTS_MAX
    for name in names:
        if name not in _APPTAINERS_OWN:
            path = f"{APPTAINER_ENVIRONMENT}/{name}"
            text = read(build, path, path)
            if text is not None:
                left -= len(text) + len(path)
                if left < 0:
                    if not quiet:
                        log.warning(f"{path} of the image, and what comes behind it, is too long; left out")
                    break
                script.read(text)
                _report(script, path, quiet)
    return _of(script)


def _enroot(build: Build, read: Read, parse: Parse | None, quiet: bool) -> list[Record] | None:
    started = read(build, ENROOT_START, ENROOT_START)
    enroots = started is not None and is_enroots(started)
    text = read(build, _ENVIRONMENT_FILE, _ENVIRONMENT_FILE)
    if not enroots:
        if text is None or parse is None:
            return None
        # As PAM reads it.
        lines = parse(text, _ENVIRONMENT_FILE)
        return [(agreement.PLAN_SET, line) for line in lines] or None
    found: list[Record] = []
    warns = not quiet
    for number, line in enumerate((text or "").split("\n"), 1):
        name, equals, _ = line.partition("=")
        if equals and not line.startswith("#") and name.strip() == name != "" and "\0" not in line:
            found.append((agreement.PLAN_SET, line))
        elif line.strip() and not line.startswith("#") and warns:
            warns = False
            log.warning(f"{_ENVIRONMENT_FILE} of the image: line {number} is not NAME=VALUE; left out")
    script = Script()
    script.read(started or "")
    return found + _of(script)


def is_enroots(text: str) -> bool:
    """Whether an /etc/rc is one that enroot wrote."""
    return "exec" in text and '"$@"' in text


def _report(script: Script, path: str, quiet: bool) -> None:
    for line in script.not_understood[:1]:
        if not quiet:
            log.warning(
                f"{path} of the image: line {line}: only a shell can evaluate it; it is left out"
                " (set-env can set what the command needs)"
            )


def _of(script: Script) -> list[Record]:
    found: list[Record] = [(agreement.PLAN_UNSET, name) for name in script.unset if name not in script.values]
    found += [(agreement.PLAN_SET_DEFAULT, f"{name}={_plain(text)}") for name, text in script.defaults.items()]
    for name, text in script.values.items():
        if "$" in text.replace("\\$", ""):
            found.append((agreement.PLAN_SET_ANYWHERE, f"{name}={text}"))
        else:
            found.append((agreement.PLAN_SET, f"{name}={_plain(text)}"))
    return [(kind, text) for kind, text in found if "\0" not in text]


def _plain(text: str) -> str:
    return text.replace("\\$", "$")


def enroot_directory(build: Build, read: Read) -> str:
    """Return the directory that enroot's /etc/rc changes to, or "" if there is none."""
    text = read(build, ENROOT_START, ENROOT_START) or ""
    if not is_enroots(text):
        return ""
    script = Script()
    script.read(text)
    return script.directory if script.directory.startswith("/") else ""
