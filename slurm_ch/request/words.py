# SPDX-License-Identifier: Apache-2.0
"""A command line of `slurm-ch run`, read without click, with the order of the options kept.

    [OPTIONS] IMAGE [OPTIONS] [--] CMD...

Options end at `--` or at the first word after the image that is not an option: what
follows is the command's own. The launcher reads the words with this; click, which knows
how to say what is wrong, is given what this has spelled out. spank/ch-join/words.c finds
the same ends, and leaves to Python whatever it is not sure of.
"""

from __future__ import annotations

from ..errors import UsageError
from . import options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TABLE = {option.name: option for option in options.OPTIONS if option.where & options.COMMAND}
_SHORT = {option.short: option for option in TABLE.values() if option.short}

# What each repetition raises, instead of replacing it.
LEVELS = ("verbose", "quiet")

# Options about where an image comes from: all is done with them before there is a container.
PULLING = ("pull", "platform")

# Options of `run` that are about itself and no row of the table: whether each takes a value.
OWN = {"feature": True, "help": False, "test": True, "usage": False, "version": False}

# The command that stands for the image's own.
IMAGES_OWN = "-"


class Words:
    """What the words of a command line are: options, image and command.

    As with getopt_long, an option's name may be cut short where that leaves no doubt.
    Only what is attached (`--write-fake=1G`, `-W1G`) is the value of an option that can do
    without one.
    """

    def __init__(self, words: Sequence[str], own: Mapping[str, bool] = OWN) -> None:
        self._own = own
        self.settings: list[options.Setting] = []
        self.spelled_out: list[str] = []  # the options, in the form that any parser understands
        self.words: list[str] = []
        self.separated: int | None = None  # how many words stood before "--"
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
        """Return the image and the command; UsageError if there is no image.

        With --join-pid there may be none: `--join-pid=N -- CMD`, `--join-pid=N CMD`.
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
        """Return the options as one word each, under their full names; of levels the last counts."""
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
            # ch-run's other name for it, whose bare form means every device there is.
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
        """Spell out a cluster of short options."""
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
