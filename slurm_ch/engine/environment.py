# SPDX-License-Identifier: Apache-2.0
"""Environment rules: from the options, and the files that they name, to records for `ch-join`.

The rules are worked out once per node; `ch-join` applies them to each task's
own environment, so that SLURM_PROCID and its like stay the task's.
"""

from __future__ import annotations

import os
import stat

from .. import agreement, log
from ..errors import ChError, UsageError
from ..request.options import IMAGE_ENVIRONMENT
from . import image, places
from .action import Action, Build
from .whereabouts import Whereabouts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ..devices.edits import Injection
    from ..request.spec import Spec
    from .caller import Caller
    from .task_plan import Record

# So much of a wrong line is shown.
_SHOWN = 80

_NOTHING: Mapping[str, str] = {}


def parse_file(text: str, given: str, separator: str = "\n") -> list[str]:
    """Return the assignments of an environment file: one a line, blank lines skipped.

    With NUL for a `separator` a line may have newlines in it. UsageError names
    the line that is no assignment, and the option as it was `given`.
    """
    assignments = []
    for number, line in enumerate(text.split(separator), 1):
        if not line:
            continue
        name, equals, _ = line.partition("=")
        if not equals or not name:
            raise UsageError(f"{given}: line {number} is not NAME=VALUE: {line[:_SHOWN]}")
        if "\0" in line:
            raise UsageError(f"{given}: line {number} has a NUL in it")
        assignments.append(unquoted(line))
    return assignments


def unquoted(assignment: str) -> str:
    """Return an assignment without the one pair of single quotes around its value."""
    name, _, value = assignment.partition("=")
    if len(value) >= 2 and value[0] == value[-1] == "'":
        value = value[1:-1]
    return f"{name}={value}"


def first_records(home: str, private_tmp: bool = False) -> list[Record]:
    """Return what happens to every environment before the user's rules."""
    return [
        (agreement.PLAN_SET, f"HOME={home}"),
        (agreement.PLAN_PATH, ""),
        (agreement.PLAN_TEMPORARY, "quiet" if private_tmp else ""),
    ]


def chosen_home(records: Sequence[Record], env: Mapping[str, str]) -> str:
    """Return the last HOME that a rule sets, with $NAME and ${NAME} expanded as the caller has them."""
    kind, value = next((one for one in reversed(records) if one[1].startswith("HOME=")), ("", "HOME=/"))
    if kind == agreement.PLAN_SET:
        return value[5:]
    home, *rest = value[5:].split("$")
    for part in rest:
        name = part[1:].partition("}")[0] if part[:1] == "{" else part.partition("/")[0]
        home += env.get(name, "") + part[len(name) + 2 * (part[:1] == "{") :]
    return home


def rule_records(
    rules: Sequence[tuple[str, str]],
    expand: bool,
    read_file: Callable[[str], str],
    device_env: Sequence[Sequence[str]] = (),
    given: Mapping[str, str] = _NOTHING,
) -> list[Record]:
    """Return the records for the user's rules.

    `read_file` gives a file's text by its path, `device_env` the assignments of
    each device rule in turn, `given` the option as given that names a file.
    """
    devices = iter(device_env)
    assign = agreement.PLAN_SET_ITEMS if expand else agreement.PLAN_SET
    records: list[Record] = []
    for kind, value in rules:
        if kind == "unset":
            records.append((agreement.PLAN_UNSET, value))
        elif kind == "set":
            records.append((assign, unquoted(value)))
        elif kind == "literal":
            records.append((agreement.PLAN_SET, value))
        elif kind == "set-anywhere":
            records.append((agreement.PLAN_SET_ANYWHERE, unquoted(value)))
        elif kind == "device":
            records += [(agreement.PLAN_SET, line) for line in next(devices)]
        else:
            separator = "\0" if kind == "file0" else "\n"
            records += [(assign, line) for line in parse_file(read_file(value), given.get(value, value), separator)]
    return records


# More than the kernel passes on to any command.
_ENVIRONMENT_FILE_MAX = 4 << 20
_OPENED = ("/dev/fd/", "/proc/self/fd/")


class Environment(Action):
    """Work out what `ch-join` does to each task's environment.

    Files of the host are read when the plan is made: a peer that joins can't
    reach them any more when this is applied.
    """

    __slots__ = ("caller", "device_env", "given", "host_files", "spec", "whereabouts")

    def __init__(self, spec: Spec, caller: Caller, injection: Injection | None = None) -> None:
        self.spec = spec
        self.device_env = injection.env if injection else []
        self.caller = caller
        self.whereabouts = Whereabouts(spec, caller)
        self.host_files: dict[str, str] = {}
        self.given: dict[str, str] = {}  # the option that names a file, by the file
        for kind, path in spec.env_rules:
            if kind not in ("file", "file0"):
                continue
            self.given[path] = f"{spec.label('set-env0' if kind == 'file0' else 'set-env')}={path}"
            if path != IMAGE_ENVIRONMENT:
                text = _host_text(caller.path(path), path, self.given[path])
                if text is not None:
                    self.host_files[path] = text

    def describe(self) -> str:
        words = "".join(f", {kind} {value}" for kind, value in self.spec.env_rules)
        first = "" if image.is_host(self.spec.image) else "HOME, PATH, TMPDIR, "
        root = "; emulate root" if self.spec.seccomp else ""
        return f"environment: {first}CH_RUNNING{words}{root}"

    def apply(self, build: Build) -> None:
        spec = self.spec
        records = [(agreement.PLAN_VERBOSITY, str(spec.verbosity))]
        if log.colored():
            records.append((agreement.PLAN_COLOR, ""))
        if not image.is_host(spec.image):
            records += first_records(self.whereabouts.home(build), spec.private_tmp)
            if spec.like_ch_run:
                records[-1] = (agreement.PLAN_UNSET, "TMPDIR")
        records += rule_records(
            spec.env_rules, spec.env_expand, lambda path: self._read(build, path), self.device_env, self.given
        )
        records.append((agreement.PLAN_SET, f"CH_RUNNING={spec.image}"))
        build.home = chosen_home(records, self.caller.environment)
        if spec.cd is not None:
            records.append((agreement.PLAN_DIRECTORY, spec.cd))
        else:
            records += self._directory(build)
        if spec.seccomp:
            records.append((agreement.PLAN_ROOT, spec.label("seccomp")))
        if spec.keep_keyring:
            records.append((agreement.PLAN_KEYRING, ""))
        build.records = records

    def _directory(self, build: Build) -> list[Record]:
        start, lost = self.whereabouts.directory(build)
        if lost and build.root and not self.spec.like_ch_run:
            log.warning(f"{lost}; starting in {start}")
        else:
            # Who joins has been told by who made the container.
            log.info(f"{lost}; starting in {start}") if lost else None
        return [(agreement.PLAN_USUAL_DIRECTORY, start), *([(agreement.PLAN_LOST_DIRECTORY, lost)] if lost else [])]

    def _read(self, build: Build, path: str) -> str:
        if path in self.host_files:
            return self.host_files[path]
        try:
            return _text(places.open_file(build, path), path, self.given[path])
        except OSError as error:
            raise ChError(f"{self.given[path]}: can't read environment file") from error


def _host_text(full: str, path: str, given: str) -> str | None:
    """Return the text of the host's file, or None when there is none of that name."""
    try:
        fd = os.open(full, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        return _text(fd, path, given)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ChError(f"{given}: can't read environment file") from error


def _text(fd: int, path: str, given: str) -> str:
    """Return what is in the file `fd`, and close it; ChError for what may never end, like a FIFO or a device.

    The shell's <(COMMAND) is a pipe that the caller holds already: that is waited for.
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
