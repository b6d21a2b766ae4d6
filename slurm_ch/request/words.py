# SPDX-License-Identifier: Apache-2.0
"""Parse a command line of `slurm-ch run` without click, and keep the order of the options.

    [OPTIONS] IMAGE [OPTIONS] [--] CMD...

Options end at `--`, or at the first word after the image that is not an option: the rest
is the command. The launcher uses only this parser. The command gives its result, with the
options written in full, to click, which reports errors. spank/ch-join/words.c splits the
command line in the same way, and leaves unclear cases to this parser.
"""

from __future__ import annotations

from ..errors import UsageError
from . import options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TABLE = {option.name: option for option in options.OPTIONS if option.where & options.COMMAND}
_SHORT = {option.short: option for option in TABLE.values() if option.short}

# Options whose levels add up when they are repeated.
LEVELS = ("verbose", "quiet")

# Options for pulling, which is done before the launcher starts.
PULLING = ("pull", "platform")

# Options of `run` that are not in the table, and whether each takes a value.
OWN = {"feature": True, "help": False, "test": True, "usage": False, "version": False}

# As the command, this means the image's own.
IMAGES_OWN = "-"


class Words:
    """The options, image and command of a command line.

    As with getopt_long, an option's name may be shortened to an unambiguous prefix. An optional
    value has to be attached (`--write-fake=1G`, `-W1G`).
    """

    def __init__(self, words: Sequence[str], own: Mapping[str, bool] = OWN) -> None:
        self._own = own
        self.settings: list[options.Setting] = []
        self.spelled_out: list[str] = []  # the options, with full names and optional values added, for click
        self.words: list[str] = []  # the image and the command
        self.separated: int | None = None  # the number of words before "--"
        self.lacks_value: str | None = None  # the last option, if its value is missing
        self._levels = dict.fromkeys(LEVELS, 0)
        self._rest = iter(words)
        for word in self._rest:
            if word == "--":
                self.separated = len(self.words)
                break
            if word.startswith("--"):
                self._long(word[2:])
            elif word.startswith("-") and len(word) > 1:
                self._cluster(word)
            else:
                self.words.append(word)
                if len(self.words) > 1:
                    break
        self.words += self._rest

    def image_and_command(self) -> tuple[str | None, list[str]]:
        """Return the image and the command; UsageError if the image is missing.

        With --join-pid, the image is optional: `--join-pid=N -- CMD`, `--join-pid=N CMD`.
        """
        by_pid = any(setting.name == "join-pid" for setting in self.settings)
        if by_pid and (self.separated == 0 or (self.separated is None and len(self.words) == 1)):
            return None, self.words
        if not self.words:
            raise UsageError("Missing argument 'IMAGE'.")
        command = self.words[1:]
        if not command and self.separated is not None:
            command = [IMAGES_OWN]
        return self.words[0], command

    def in_full(self) -> list[str]:
        """Return the options, one word each, with their full names; of repeated levels only the sum."""
        last = {setting.name: setting for setting in self.settings}
        found = []
        for setting in self.settings:
            if setting.name in PULLING:
                continue
            if TABLE[setting.name].kind == options.FLAG:
                found.append(f"--{setting.name}")
            elif setting.name not in LEVELS or setting is last[setting.name]:
                found.append(f"--{setting.name}={setting.value}")
        return found

    def _long(self, word: str) -> None:
        name, equals, value = word.partition("=")
        if name == "cdi":
            # ch-run's other name for --device. Without a value, it means all devices.
            from ..devices import names as cdinames

            name, equals, value = "device", "=", value if equals else cdinames.EVERY
        name = self._in_full(name)
        option = TABLE.get(name)
        if option and not equals and option.bare is not None and option.kind != options.FLAG:
            equals, value = "=", option.bare
        self.spelled_out.append(f"--{name}{equals}{value}")
        if not equals and (option.kind != options.FLAG if option else self._own.get(name, False)):
            value = self._value(f"--{name}")
        if option:
            self._set(option, value)

    def _value(self, name: str) -> str:
        for word in self._rest:
            self.spelled_out.append(word)
            return word
        self.lacks_value = name
        return ""

    def _cluster(self, word: str) -> None:
        """Parse a word of short options, like -vW1G."""
        for index, letter in enumerate(word[1:], 1):
            option = _SHORT.get(letter)
            rest = word[index + 1 :]
            if option is None:
                self.spelled_out.append(f"-{word[index:]}")
                return
            bare = option.bare
            if option.kind == options.FLAG:
                self.spelled_out.append(f"-{letter}")
                self._set(option, "yes")
            elif bare is not None and option.name in LEVELS and not rest[:1].isdigit():
                self.spelled_out.append(f"-{letter}{bare}")
                self._set(option, bare)
            elif bare is not None:
                self.spelled_out.append(f"-{letter}{rest or bare}")
                self._set(option, rest or bare)
                return
            else:
                self.spelled_out.append(f"-{letter}{rest}")
                self._set(option, rest or self._value(f"-{letter}"))
                return

    def _set(self, option: options.Option, value: str) -> None:
        text = "yes" if option.kind == options.FLAG else value
        if option.name in LEVELS and text.isascii() and text.isdigit() and len(text) == 1:
            self._levels[option.name] += int(text)
            text = str(self._levels[option.name])
        self.settings.append(options.Setting(option.name, text, f"--{option.name}", options.COMMAND))

    def _in_full(self, name: str) -> str:
        known = (*TABLE, *self._own)
        if name in known:
            return name
        found = [one for one in known if one.startswith(name)]
        return found[0] if name and len(found) == 1 else name
