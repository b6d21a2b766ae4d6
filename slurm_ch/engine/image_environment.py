# SPDX-License-Identifier: Apache-2.0
"""Read the environment that Apptainer or enroot left in an image as shell scripts, without running them.

Most of these scripts are lists of assignments. Running the image's shell would take time in every task, and the
image may have none. What only a shell can evaluate is left out with a warning. Loaded only for such images.
"""

from __future__ import annotations

from .. import agreement, log
from .. import lean_os as os
from ..agreement import APPTAINER_ENVIRONMENT, ENROOT_START
from . import places

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .action import Build
    from .task_plan import Record

    # (build, path, name for messages) -> text of a file of the image, or None
    Read = Callable[[Build, str, str], str | None]
    # (text, name for messages) -> assignments
    Parse = Callable[[str, str], list[str]]

# Scripts for Apptainer's own use: its prompt, its libraries and its apps.
_APPTAINERS_OWN = ("01-base.sh", "94-appsbase.sh", "95-apps.sh", "99-base.sh", "99-runtimevars.sh")
_ENVIRONMENT_FILE = "/etc/environment"
_NAME_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_0123456789")
# Sizes in characters. The kernel passes no longer value to a program; A=$A$A doubles with each line.
_VALUE_MAX = 1 << 17
# All values together: more than the kernel passes to a program.
_VALUES_MAX = 4 << 20
# All Apptainer's scripts together: far more than it writes.
_SCRIPTS_MAX = 1 << 20
# After one of these words, only a shell knows which commands are executed.
_COMPOUND = ("if", "for", "while", "until", "case", "{", "function", "exit", "return", "exec")


class _NeedsShell(Exception):
    """Only a shell can evaluate this."""


class Script:
    r"""The assignments of shell scripts, as far as they can be evaluated without a shell.

    `values`: each exported variable's value. `$NAME` in it stands for the task's variable, `\$` for a dollar.
    `defaults`: values for tasks that don't have the variable. `unset`: names of variables to unset.
    `directory`: where the script changes to, or "". `not_understood`: numbers of the lines that were skipped.
    """

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.defaults: dict[str, str] = {}
        self.unset: dict[str, None] = {}
        self.directory = ""
        self.not_understood: list[int] = []
        self._local: dict[str, str] = {}
        self._room = _VALUES_MAX
        self._text = ""
        self._at = 0

    def read(self, text: str) -> None:
        """Evaluate a script, after those that were read before."""
        self._text, self._at = text, 0
        self.not_understood = []
        line, counted = 1, 0
        while self._at < len(text):
            line, counted = line + text.count("\n", counted, self._at), self._at
            try:
                words = self._command()
            except (_NeedsShell, RecursionError):  # the latter for nested ${A:-${A:-${A:-
                self.not_understood.append(line)
                self._skip_line()
                continue
            if words and words[0] in _COMPOUND:
                self.not_understood.append(line)
                return
            try:
                self._carry_out(words)
            except _NeedsShell:
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
                    raise _NeedsShell
                self._assign(name, value if equals else None, exports)

    def _assign(self, name: str, value: str | None, exports: bool) -> None:
        if value is None:
            if name not in self._local:
                return
            value = self._local.pop(name)
        self._room -= len(name) + len(value)
        if self._room < 0:
            raise _NeedsShell
        if value.startswith("\0"):
            if value[1:].partition("\0")[0] != name:
                raise _NeedsShell
            if name not in self.values:
                self.defaults.setdefault(name, value.rpartition("\0")[2])
            return
        if "\0" in value:
            raise _NeedsShell
        self.defaults.pop(name, None)
        if exports or name in self.values:
            self.values[name] = value
        else:
            self._local[name] = value

    # --- words ---------------------------------------------------------------

    def _command(self) -> list[str]:
        """Return the next command's words, and move past it."""
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
                raise _NeedsShell
            else:
                words.append(self._word())
        return words

    def _skip_line(self) -> None:
        end = self._text.find("\n", self._at)
        self._at = len(self._text) if end < 0 else end

    def _word(self, end: str = " \t\r\n;&|()<>", quoted: bool = False) -> str:
        """Return the word up to one of the letters in `end`, without its quotes."""
        text, parts, room = self._text, [""], _VALUE_MAX
        while self._at < len(text):
            letter = text[self._at]
            room -= len(parts[-1])
            if room < 0:
                raise _NeedsShell
            if letter in end and not quoted:
                break
            self._at += 1
            if letter == '"':
                quoted = not quoted
            elif letter == "'" and not quoted:
                parts.append(self._single_quoted())
            elif letter == "\\":
                parts.append(self._escaped(quoted))
            elif letter == "$":
                parts.append(self._dollar())
            elif letter == "`":
                raise _NeedsShell
            else:
                parts.append(letter)
        if quoted:
            raise _NeedsShell
        return "".join(parts)

    def _single_quoted(self) -> str:
        close = self._text.find("'", self._at)
        if close < 0:
            raise _NeedsShell
        inside = self._text[self._at : close]
        self._at = close + 1
        return _literal(inside)

    def _escaped(self, quoted: bool) -> str:
        after = self._text[self._at : self._at + 1]
        self._at += 1
        if after == "\n":
            return ""
        return _literal(after if not quoted or after in '$`"\\' else "\\" + after)

    def _dollar(self) -> str:
        """Return the value of the `$NAME` or `${NAME...}` whose `$` was just read."""
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
            raise _NeedsShell
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
                    raise _NeedsShell
                self._at += 1
                return self._default_or_value(name, operator, other)
        raise _NeedsShell

    def _default_or_value(self, name: str, operator: str, other: str) -> str:
        if operator.endswith("+"):
            # As in PATH=/x${PATH:+:$PATH}: ch-join drops empty items of such a list anyway.
            if other in (f":${{{name}}}", f"${{{name}}}:"):
                return other
            raise _NeedsShell
        known = self.values.get(name, self._local.get(name))
        if known:
            return known
        if "\0" in other:
            raise _NeedsShell
        return f"\0{name}\0{other}"

    def _value_of(self, name: str) -> str:
        if name in self.defaults:
            raise _NeedsShell
        if name in self.unset and name not in self.values and name not in self._local:
            return ""
        return self.values.get(name, self._local.get(name, f"${{{name}}}"))


def _literal(text: str) -> str:
    return text.replace("$", "\\$")


def records(build: Build, read: Read, parse: Parse | None, quiet: bool) -> list[Record] | None:
    """Return the records for the environment of an image of Apptainer's or enroot's, or None if it has none.

    `parse` is for /etc/environment of other images; without it, that file is ignored. Lines that can't be evaluated
    are reported by a warning, unless `quiet`.
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
                        log.warning(f"{path} of the image and the scripts after it are too long; left out")
                    break
                script.read(text)
                _report(script, path, quiet)
    return _records(script)


def _enroot(build: Build, read: Read, parse: Parse | None, quiet: bool) -> list[Record] | None:
    started = read(build, ENROOT_START, ENROOT_START)
    enroots = started is not None and is_enroot_rc(started)
    text = read(build, _ENVIRONMENT_FILE, _ENVIRONMENT_FILE)
    if not enroots:
        if text is None or parse is None:
            return None
        # An image that enroot didn't make: the file is PAM's.
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
    return found + _records(script)


def is_enroot_rc(text: str) -> bool:
    """Whether `text`, an /etc/rc, was written by enroot."""
    return "exec" in text and '"$@"' in text


def _report(script: Script, path: str, quiet: bool) -> None:
    for line in script.not_understood[:1]:
        if not quiet:
            log.warning(
                f"{path} of the image: line {line}: only a shell can evaluate it; it is left out"
                " (set-env can set what the command needs)"
            )


def _records(script: Script) -> list[Record]:
    found: list[Record] = [(agreement.PLAN_UNSET, name) for name in script.unset if name not in script.values]
    found += [
        (agreement.PLAN_SET_DEFAULT, f"{name}={_without_escapes(text)}") for name, text in script.defaults.items()
    ]
    for name, text in script.values.items():
        if "$" in text.replace("\\$", ""):
            found.append((agreement.PLAN_SET_ANYWHERE, f"{name}={text}"))
        else:
            found.append((agreement.PLAN_SET, f"{name}={_without_escapes(text)}"))
    return [(kind, text) for kind, text in found if "\0" not in text]


def _without_escapes(text: str) -> str:
    return text.replace("\\$", "$")


def enroot_directory(build: Build, read: Read) -> str:
    """Return the directory that enroot's /etc/rc changes to, or "" if there is none."""
    text = read(build, ENROOT_START, ENROOT_START) or ""
    if not is_enroot_rc(text):
        return ""
    script = Script()
    script.read(text)
    return script.directory if script.directory.startswith("/") else ""
