# SPDX-License-Identifier: Apache-2.0
"""Environment rules: from the options, and the files that they name, to records for `ch-join`.

The rules are worked out once per node; `ch-join` applies them to each task's
own environment, so that SLURM_PROCID and similar variables stay the task's.
"""

from __future__ import annotations

import _stat as stat
import sys

from .. import agreement, log
from .. import lean_os as os
from ..errors import ChError, UsageError, describe
from ..request.options import APPTAINER_ENVIRONMENT, ENROOT_START, IMAGE_ENVIRONMENT, PULLED_ENVIRONMENT
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

_BYTE_ORDER_MARK = "\ufeff"
# Bytes that are no UTF-8, as Python decodes them.
_UTF16 = ("\udcff\udcfe", "\udcfe\udcff")


def parse_file(text: str, given: str, separator: str = "\n", either_quotes: bool = True) -> list[str]:
    """Return the assignments of an environment file: one a line, blank lines and comments skipped.

    Blanks before a line, an `export` there, a carriage return behind it and a byte order mark are no part
    of it, and one pair of quotes around a value goes. With NUL for a `separator`, a line is an assignment
    as it stands, and may have newlines in it. UsageError names the line that is no assignment, and
    the option as it was `given`.
    """
    if separator == "\n":
        if text.startswith(_UTF16):
            raise UsageError(f"{given}: line 1 is UTF-16; save the file as UTF-8")
        text = text.removeprefix(_BYTE_ORDER_MARK)
    assignments = []
    for number, whole in enumerate(text.split(separator), 1):
        line = _written(whole) if separator == "\n" else whole
        if not line:
            continue
        name, equals, _ = line.partition("=")
        if not equals or not name:
            raise UsageError(f"{given}: line {number} is not NAME=VALUE: {whole[:_SHOWN]}")
        if "\0" in line:
            raise UsageError(f"{given}: line {number} has a NUL in it")
        if not is_name(name):
            raise UsageError(f"{given}: line {number}: the variable's name has a blank in it: {whole[:_SHOWN]}")
        if separator == "\n":
            wrong = _only_a_shells(whole, name, line[len(name) + 1 :])
            if wrong:
                raise UsageError(f"{given}: line {number}: {wrong}: {whole[:_SHOWN]}")
        assignments.append(unquoted(line, either_quotes and separator == "\n"))
    return assignments


def _written(line: str) -> str:
    """Return what a line of a file is for a shell's eye: nothing for a comment."""
    line = line.removesuffix("\r").lstrip(" \t\r\v\f")
    if line.startswith(("export ", "export\t")):
        return line[len("export ") :].lstrip()
    return "" if line.startswith("#") else line


def _only_a_shells(whole: str, name: str, value: str) -> str:
    """Return why a line means something else to a shell than it would here, or ""."""
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
    """Whether a variable can be called so: blanks and control characters are a slip of whoever wrote it."""
    return bool(name) and not any(letter.isspace() or letter < " " for letter in name)


def unquoted(assignment: str, either: bool = False) -> str:
    """Return an assignment without the one pair of single quotes around its value; with `either`, or double."""
    name, _, value = assignment.partition("=")
    if len(value) >= 2 and value[0] == value[-1] and value[0] in ("'\"" if either else "'"):
        value = value[1:-1]
    return f"{name}={value}"


def stray_dollar(value: str) -> str:
    """Return the first `$` of a value that is neither $NAME, ${NAME} nor behind a backslash, with what follows."""
    before, dollar, after = value.partition("$")
    while dollar:
        braced = after[:1] == "{"
        name = after[1:].partition("}")[0] if braced else after[:1]
        closed = not braced or "}" in after
        if before[-1:] != "\\" and not (closed and name.isascii() and name.isidentifier()):
            return ("$" + after)[:_SHOWN]
        before, dollar, after = after.partition("$")
    return ""


# Root looks for commands there, as dpkg and useradd do; on Debian, others don't.
_ROOTS_PATH = "/usr/local/sbin:/usr/sbin:/sbin"


def first_records(home: str, private_tmp: bool = False, makes_path: bool = True) -> list[Record]:
    """Return what happens to every environment before the user's rules."""
    return [
        (agreement.PLAN_SET, f"HOME={home}"),
        (agreement.PLAN_PATH, "" if makes_path else "as it is"),
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
    assign: str,
    read_file: Callable[[str, str], list[str]],
    device_env: Sequence[Sequence[str]] = (),
    images_own: Callable[[str], list[Record]] | None = None,
) -> list[Record]:
    """Return the records for the user's rules.

    `assign` is the kind of record that sets what the user wrote, `read_file` gives the assignments of a file
    by the rule's kind and its path, `device_env` those of each device rule in turn, `images_own` the records for the
    image's own environment.
    """
    devices = iter(device_env)
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
        elif value == IMAGE_ENVIRONMENT and images_own is not None:
            records += images_own(kind)
        else:
            records += [(assign, line) for line in read_file(kind, value)]
    return records


# More than the kernel passes on to any command.
_ENVIRONMENT_FILE_MAX = 4 << 20
_OPENED = ("/dev/fd/", "/proc/self/fd/")

# Whose file is meant, where it is written before the path.
_IMAGES = "image:"
_HOSTS = "host:"

_CH = "/ch"
_METADATA = "/ch/metadata.json"
# Where something of an image's own may be.
_PLACES = (_CH, APPTAINER_ENVIRONMENT, ENROOT_START)

# What of an image's own environment never counts, because a job's is Slurm's, and what only counts where a task
# has none: who its user is, and how Slurm, MPI and the devices lay out the job.
_SLURMS = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "SALLOC_", "SPANK_")
_TASKS = (
    "PMI_", "PMIX_", "PALS_", "OMPI_", "I_MPI_", "MPICH_", "OMP_", "KMP_", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK",
)  # fmt: skip
_TASKS_ENDINGS = ("_NUM_THREADS", "_VISIBLE_DEVICES")
_USERS = ("USER", "LOGNAME", "TERM", "TMPDIR", "TMP", "TEMP", "TEMPDIR")

# ch-run's own word for every image.
_CH_RUN_RUNNING = "Weird Al Yankovic"


class Environment(Action):
    """Work out what `ch-join` does to each task's environment.

    Files of the host are read when the plan is made: a peer that joins can't
    reach them any more when this is applied.
    """

    __slots__ = ("caller", "device_env", "given", "host_files", "joining", "spec", "whereabouts")

    def __init__(self, spec: Spec, caller: Caller, injection: Injection | None = None, joining: bool = False) -> None:
        self.spec = spec
        self.device_env = injection.env if injection else []
        self.caller = caller
        self.joining = joining  # what others say already isn't said again
        self.whereabouts = Whereabouts(spec, caller)
        self.host_files: dict[str, tuple[str, tuple[int, int]]] = {}  # text and identity, by the path as given
        self.given: dict[str, str] = {}  # the option that names a file, by the file
        for kind, path in spec.env_rules:
            if kind not in ("file", "file0"):
                continue
            self.given[path] = f"{spec.label('set-env0' if kind == 'file0' else 'set-env')}={path}"
            if path == IMAGE_ENVIRONMENT or path.startswith(_IMAGES):
                continue
            found = _host_file(caller.path(path.removeprefix(_HOSTS)), path, self.given[path])
            if found is not None:
                self.host_files[path] = found
            elif path.startswith(_HOSTS):
                raise ChError(f"{self.given[path]}: can't read environment file: no such file on the host")

    def describe(self) -> str:
        words = "".join(f", {kind} {value}" for kind, value in self.spec.env_rules)
        first = "" if image.is_host(self.spec.image) else "HOME, PATH, TMPDIR, "
        root = "; emulate root" if self.spec.seccomp else ""
        own = "" if self.spec.image_env is False or self.spec.like_ch_run else "the image's own if it brings one, "
        return f"environment: {own if first else ''}{first}CH_RUNNING{words}{root}"

    def apply(self, build: Build) -> None:
        spec = self.spec
        in_image = not image.is_host(spec.image)
        records = [(agreement.PLAN_VERBOSITY, str(spec.verbosity))]
        if spec.color is not False:
            records.append((agreement.PLAN_COLOR, "" if spec.color else agreement.IF_TERMINAL))
        if spec.like_ch_run:
            records.append((agreement.PLAN_LIKE_CH_RUN, ""))
        places_there: list[str] = []
        if in_image and not spec.like_ch_run:
            places_there = [path for path in _PLACES if _is_there(build, path)]
            records += self._in_manner(build, places_there)
        records += self._relayed(in_image)
        if in_image:
            records += first_records(self.whereabouts.home(build), spec.private_tmp, not spec.like_ch_run)
            if spec.uid == 0 and not spec.like_ch_run:
                records.append((agreement.PLAN_PATH, _ROOTS_PATH))
            if spec.like_ch_run:
                records[-1] = (agreement.PLAN_UNSET, "TMPDIR")
        records += self._rules(build)
        records.append((agreement.PLAN_SET, f"CH_RUNNING={_CH_RUN_RUNNING if spec.like_ch_run else spec.image}"))
        build.home = chosen_home(records, self.caller.environment)
        if spec.cd is not None:
            records.append((agreement.PLAN_DIRECTORY, spec.cd))
        else:
            records += self._directory(build, _images_directory(build, places_there))
        if spec.seccomp:
            records.append((agreement.PLAN_ROOT, spec.label("seccomp")))
        if spec.keep_keyring:
            records.append((agreement.PLAN_KEYRING, ""))
        build.records = records

    def _relayed(self, in_image: bool) -> list[Record]:
        """Return the records for the TMPDIR of a script in a container whose step this is."""
        env = self.caller.environment
        relayed = env.get(agreement.RELAYED_PREFIX + "TMPDIR", "")
        if not relayed or not (in_image or os.path.isdir(relayed)):
            return []
        # A TaskProlog may set another for the step.
        still = (agreement.PLAN_IF_STILL, f"TMPDIR={env.get('TMPDIR', '')}")
        return [still, (agreement.PLAN_SET, f"TMPDIR={relayed}")]

    def _in_manner(self, build: Build, places_there: Sequence[str]) -> list[Record]:
        """Return the records for the environment that an image brings, as users of another tool expect it."""
        brought, manner = self._brought_along(build, places_there), self.spec.manner
        if manner is None:
            return brought
        variable, assignments = manner.if_image_has
        if not any(text.startswith(variable + "=") for _, text in brought):
            assignments = ()
        return [*((agreement.PLAN_UNSET, name) for name in manner.drop), *brought, *manner.defaults, *assignments]

    def _directory(self, build: Build, images: str) -> list[Record]:
        if self.spec.manner and self.spec.manner.start_in_image:
            return [(agreement.PLAN_DIRECTORY, images or "/")]
        start, lost = self.whereabouts.directory(build)
        if self.spec.manner:
            return [(agreement.PLAN_DIRECTORY, images or "/" if lost else start)]
        if lost and images and start == "/":
            start = images
        if lost and build.root and not self.spec.like_ch_run:
            log.warning(f"{lost}; starting in {start}")
        else:
            # Who joins has been told by who made the container.
            log.info(f"{lost}; starting in {start}") if lost else None
        records = [(agreement.PLAN_USUAL_DIRECTORY, start)]
        if images:
            records.append((agreement.PLAN_IMAGES_DIRECTORY, images))
        if lost:
            records.append((agreement.PLAN_LOST_DIRECTORY, lost))
        return records

    def _rules(self, build: Build) -> list[Record]:
        spec = self.spec
        if not spec.env_rules:
            return []
        assign = agreement.PLAN_SET_ITEMS if spec.like_ch_run else agreement.PLAN_SET_ANYWHERE
        if not spec.env_expand:
            assign = agreement.PLAN_SET
        records = rule_records(
            spec.env_rules,
            assign,
            lambda kind, path: self._assignments(build, kind, path),
            self.device_env,
            None if spec.like_ch_run else lambda kind: self._asked_for(build, kind, assign),
        )
        if not self.joining:
            for kind, text in records:
                stray = stray_dollar(text) if kind == agreement.PLAN_SET_ANYWHERE and "$" in text else ""
                if stray:
                    what = f"{spec.label('set-env')}: {text[:_SHOWN]}: the $ in {stray}"
                    log.warning(f"{what} names no variable and stays as it is (\\$ for a dollar)")
        return records

    def _assignments(self, build: Build, kind: str, path: str) -> list[str]:
        return parse_file(
            self._read(build, path), self.given[path], "\0" if kind == "file0" else "\n", not self.spec.like_ch_run
        )

    def _read(self, build: Build, path: str) -> str:
        if path in self.host_files:
            text, identity = self.host_files[path]
            if path.startswith("/") and not self.joining and not self.spec.like_ch_run:
                self._report_both(build, path, identity)
            return text
        try:
            return _text(places.open_file(build, path.removeprefix(_IMAGES)), path, self.given[path])
        except OSError as error:
            raise ChError(f"{self.given[path]}: can't read environment file") from error

    def _report_both(self, build: Build, path: str, identity: tuple[int, int]) -> None:
        """Say that the host's file is meant, where the image has another of that name."""
        try:
            fd = places.look_up(build, path, True)
        except OSError:
            return
        status = os.fstat(fd)
        os.close(fd)
        if (status.st_dev, status.st_ino) != identity:
            label = self.given[path].removesuffix(path)
            log.warning(
                f"{self.given[path]}: the host's file, and the image has one of that name too:"
                f" {label}{_IMAGES}{path} for the image's, {label}{_HOSTS}{path} for the host's"
            )

    # --- the image's own -----------------------------------------------------

    def _asked_for(self, build: Build, kind: str, assign: str) -> list[Record]:
        """Return the records for the image's environment, wherever it is; ChError if it has none."""
        given = self.given[IMAGE_ENVIRONMENT]
        literal = read_image(build, PULLED_ENVIRONMENT, given)
        if literal is not None:
            return [one for one in _as_it_is(literal) if not one[1].startswith(_SLURMS)]
        text = read_image(build, IMAGE_ENVIRONMENT, given)
        if text is not None:
            return [(assign, line) for line in parse_file(text, given, "\0" if kind == "file0" else "\n")]
        from . import image_environment

        # What isn't understood has been reported where the environment is brought along.
        quiet = self.joining or self.spec.image_env is not False
        found = image_environment.records(build, read_image, parse_file, quiet)
        if found is None:
            raise ChError(f"{given}: can't read environment file: the image has neither this nor another")
        return found

    def _brought_along(self, build: Build, places_there: Sequence[str]) -> list[Record]:
        """Return the records for the environment of an image that brings one, by which of _PLACES are there.

        What an image has there by chance is no reason to fail, unless the user asks for it.
        """
        spec = self.spec
        if spec.image_env is False:
            return []
        read = read_image if spec.image_env else _try_image
        if _CH in places_there:
            literal = read(build, PULLED_ENVIRONMENT, PULLED_ENVIRONMENT)
            if literal is not None:
                return self._unless_the_tasks(_as_it_is(literal))
            text = read(build, IMAGE_ENVIRONMENT, IMAGE_ENVIRONMENT) if spec.image_env else None
            if text is not None:
                lines = parse_file(text, IMAGE_ENVIRONMENT)
                return self._unless_the_tasks([(agreement.PLAN_SET_ANYWHERE, line) for line in lines])
        if not spec.image_env and not (APPTAINER_ENVIRONMENT in places_there or ENROOT_START in places_there):
            return []
        from . import image_environment

        found = image_environment.records(build, read, parse_file if spec.image_env else None, self.joining)
        if found is None and spec.image_env:
            raise ChError(f"{spec.label('image-env')}: {spec.image} has no environment of its own")
        return self._unless_the_tasks(found or [])

    def _unless_the_tasks(self, records: Sequence[Record]) -> list[Record]:
        """Return the records of an image's environment, with what is a task's own left to the task.

        That is what Slurm, MPI or the user with --export say, and what differs from the step's: a task's prolog
        or a plugin has set it.
        """
        environment = self.caller.environment
        keep: Sequence[str] = ()
        if self.spec.manner:
            keep = self.spec.manner.keep
            environment = {name: value for name, value in environment.items() if name not in self.spec.manner.drop}
        exported = [word.partition("=")[0] for word in environment.get(agreement.EXPORTED_VARIABLE, "").split(",")]
        kept: list[Record] = []
        # Of the same name, the last one counts.
        last = {text.partition("=")[0]: (kind, text) for kind, text in records}
        for name, (kind, text) in last.items():
            if name.startswith(_SLURMS):
                continue
            is_tasks = name.startswith(_TASKS) or name.endswith(_TASKS_ENDINGS) or name in _USERS or name in exported
            is_tasks = is_tasks or name in keep
            if kind == agreement.PLAN_SET and (is_tasks or name not in environment):
                kept.append((agreement.PLAN_SET_DEFAULT, text))
            elif not is_tasks or name not in environment:
                if name in environment and kind in (agreement.PLAN_SET, agreement.PLAN_SET_ANYWHERE):
                    kept.append((agreement.PLAN_IF_STILL, f"{name}={environment[name]}"))
                kept.append((kind, text))
        return kept


def _images_directory(build: Build, places_there: Sequence[str]) -> str:
    """Return the directory that the image's own command starts in, or "" if the image names none that it has."""
    text = _try_image(build, _METADATA, _METADATA) if _CH in places_there else None
    directory = ""
    if text is not None:
        directory = working_directory(text)
    elif ENROOT_START in places_there:
        from . import image_environment

        directory = image_environment.enroot_directory(build, _try_image)
    return directory if directory.strip("/") and _is_there(build, directory + "/.") else ""


def _as_it_is(text: str) -> list[Record]:
    """Return the records for what `slurm-ch pull` writes: each value as the image's builder has it."""
    assignments = [unquoted(line) for line in text.split("\0")]
    return [(agreement.PLAN_SET, line) for line in assignments if is_name(line.partition("=")[0])]


def load_readers() -> None:
    """Load what reads an image's environment: in a container that somebody else made, nothing of ours can be found."""
    from . import image_environment  # noqa: F401


def worked_out(environment: Environment) -> Build:
    """Return what a process that entered a container needs: the environment, worked out inside."""
    build = Build()
    build.root_fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    # Nothing may be imported meanwhile: what a module's path leads to is the image's.
    finders, sys.meta_path[:] = sys.meta_path[:], []
    try:
        environment.apply(build)
    finally:
        sys.meta_path[:] = finders
    return build


def working_directory(metadata: str) -> str:
    """Return what ch-image's metadata say of the working directory, without a reader of JSON for all of it.

    Written with each member on a line of its own, and a string has no newline.
    """
    line = metadata.partition('\n  "cwd": "')[2].partition("\n")[0].rstrip(",")
    if "\\" in line:
        try:
            import json

            line = str(json.loads(f'"{line}')) + '"'
        except (ValueError, ImportError):
            return ""
    return line[:-1] if line.endswith('"') and line.startswith("/") and "\0" not in line else ""


def _try_image(build: Build, path: str, given: str) -> str | None:
    """Return the text of the image's file, or None where there is none that can be read."""
    try:
        return read_image(build, path, given)
    except ChError as error:
        log.info(f"{path} of the image is left out: {describe(error)}")
        return None


def is_tasks_own(name: str) -> bool:
    """Whether a variable may differ from task to task."""
    return name.startswith((*_SLURMS, *_TASKS)) or name.endswith(_TASKS_ENDINGS)


def _is_there(build: Build, path: str) -> bool:
    try:
        os.close(places.look_up(build, path, True))
    except OSError:
        return False
    return True


def read_image(build: Build, path: str, given: str) -> str | None:
    """Return the text of the image's file, or None when there is none; ChError if it can't be read."""
    try:
        return _text(places.open_file(build, path), path, given)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ChError(f"{given}: can't read environment file") from error


def _host_file(full: str, path: str, given: str) -> tuple[str, tuple[int, int]] | None:
    """Return the text of the host's file and which file it is, or None when there is none of that name."""
    try:
        fd = os.open(full, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        status = os.fstat(fd)
        return _text(fd, path, given), (status.st_dev, status.st_ino)
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
