# SPDX-License-Identifier: Apache-2.0
"""Turn the environment options, and the files that they name, into records for `ch-join`.

The rules are evaluated once per node. `ch-join` applies the records to each task's
own environment, so that SLURM_PROCID and similar variables keep the task's values.
"""

from __future__ import annotations

import sys

from .. import agreement, log
from .. import lean_os as os
from ..agreement import APPTAINER_ENVIRONMENT, ENROOT_START, IMAGE_ENVIRONMENT, IMAGE_ENVIRONMENT0
from ..errors import ChError
from . import image, places
from .action import Action, Build
from .environment_files import (
    SHOWN,
    host_file,
    is_name,
    parse_file,
    read_image,
    text_of,
    try_image,
    unquoted,
    working_directory,
)  # fmt: skip
from .user_directories import UserDirectories

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ..devices.edits import Injection
    from ..request.spec import Spec
    from .caller import Caller
    from .task_plan import Record


def stray_dollar(value: str) -> str:
    """Return the rest of a value from its first `$` that is neither $NAME, ${NAME} nor escaped by a backslash."""
    before, dollar, after = value.partition("$")
    while dollar:
        braced = after[:1] == "{"
        name = after[1:].partition("}")[0] if braced else after[:1]
        closed = not braced or "}" in after
        if before[-1:] != "\\" and not (closed and name.isascii() and name.isidentifier()):
            return ("$" + after)[:SHOWN]
        before, dollar, after = after.partition("$")
    return ""


# Root needs these in PATH: dpkg and useradd are there. Debian's other users don't have them.
_ROOTS_PATH = "/usr/local/sbin:/usr/sbin:/sbin"


def first_records(home: str, private_tmp: bool = False, makes_path: bool = True) -> list[Record]:
    """Return the records that come before the user's rules: HOME, PATH and TMPDIR."""
    return [
        (agreement.PLAN_SET, f"HOME={home}"),
        (agreement.PLAN_PATH, "" if makes_path else "as it is"),
        (agreement.PLAN_TEMPORARY, "quiet" if private_tmp else ""),
    ]


def chosen_home(records: Sequence[Record], env: Mapping[str, str]) -> str:
    """Return the HOME that the last rule for it sets, with $NAME and ${NAME} expanded from the caller's `env`."""
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
    """Return the records for the user's rules, in their order.

    `assign`: the kind of record for the user's assignments. `read_file`: returns a file's assignments, given the
    rule's kind and the path. `device_env`: the assignments of each device rule in turn. `images_own`: returns the
    records for the image's own environment, given the rule's kind.
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


# Prefixes of a path that choose between a file of the image and one of the host.
_IMAGES = "image:"
_HOSTS = "host:"

_CH = "/ch"
# One of these exists in an image that brings an environment.
_PLACES = (_CH, APPTAINER_ENVIRONMENT, ENROOT_START)

# Variables that an image never sets: they belong to Slurm.
_SLURMS = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "SALLOC_", "SPANK_")
# Variables that an image sets only for tasks that don't have them: they describe the task's place in the job, its
# devices and its user.
_TASKS = (
    "PMI_", "PMIX_", "PALS_", "OMPI_", "I_MPI_", "MPICH_", "OMP_", "KMP_", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK",
)  # fmt: skip
_TASKS_ENDINGS = ("_NUM_THREADS", "_VISIBLE_DEVICES")
_USERS = ("USER", "LOGNAME", "TERM", *agreement.TEMPORARY_VARIABLES)

# ch-run's value for every image.
_CH_RUN_RUNNING = "Weird Al Yankovic"


class Environment(Action):
    """Determine what `ch-join` does to each task's environment.

    Files of the host are read when this object is created: a process that joins a
    container can't reach them any more when the action is applied.
    """

    __slots__ = ("caller", "device_env", "given", "host_files", "joining", "spec", "user_directories")

    def __init__(self, spec: Spec, caller: Caller, injection: Injection | None = None, joining: bool = False) -> None:
        self.spec = spec
        self.device_env = injection.env if injection else []
        self.caller = caller
        self.joining = joining  # whether another process makes the container, and reports its warnings
        self.user_directories = UserDirectories(spec, caller)
        self.host_files: dict[str, tuple[str, tuple[int, int]]] = {}  # given path: text, (device, inode)
        self.given: dict[str, str] = {}  # given path: the option that names it
        for kind, path in spec.env_rules:
            if kind not in ("file", "file0"):
                continue
            self.given[path] = f"{spec.label('set-env0' if kind == 'file0' else 'set-env')}={path}"
            if path == IMAGE_ENVIRONMENT or path.startswith(_IMAGES):
                continue
            found = host_file(caller.path(path.removeprefix(_HOSTS)), path, self.given[path])
            if found is not None:
                self.host_files[path] = found
            elif path.startswith(_HOSTS):
                raise ChError(f"{self.given[path]}: can't read environment file: no such file on the host")

    def describe(self) -> str:
        words = "".join(f", {kind} {value}" for kind, value in self.spec.env_rules)
        first = "" if image.is_host(self.spec.image) else "HOME, PATH, TMPDIR, "
        root = "; emulate root" if self.spec.seccomp else ""
        own = "" if self.spec.image_env is False or self.spec.like_ch_run else "the image's own if it brings one, "
        return f"environment: {own if first else ''}{first}{agreement.RUNNING_VARIABLE}{words}{root}"

    def apply(self, build: Build) -> None:
        spec = self.spec
        in_image = not image.is_host(spec.image)
        records = [(agreement.PLAN_VERBOSITY, str(spec.verbosity))]
        if spec.color is not False:
            records.append((agreement.PLAN_COLOR, "" if spec.color else agreement.IF_TERMINAL))
        if spec.like_ch_run:
            records.append((agreement.PLAN_LIKE_CH_RUN, ""))
        present: list[str] = []
        if in_image and not spec.like_ch_run:
            present = [path for path in _PLACES if places.exists(build, path)]
            records += self._image_environment(build, present)
        records += self._relayed(in_image)
        if in_image:
            records += first_records(self.user_directories.home(build), spec.private_tmp, not spec.like_ch_run)
            if spec.uid == 0 and not spec.like_ch_run:
                records.append((agreement.PLAN_PATH, _ROOTS_PATH))
            if spec.like_ch_run:
                records[-1] = (agreement.PLAN_UNSET, "TMPDIR")
        records += self._rules(build)
        running = _CH_RUN_RUNNING if spec.like_ch_run else spec.image
        records.append((agreement.PLAN_SET, f"{agreement.RUNNING_VARIABLE}={running}"))
        build.home = chosen_home(records, self.caller.environment)
        if spec.cd is not None:
            records.append((agreement.PLAN_DIRECTORY, spec.cd))
        else:
            records += self._directory(build, _images_directory(build, present))
        if spec.seccomp:
            records.append((agreement.PLAN_ROOT, spec.label("seccomp")))
        if spec.keep_keyring:
            records.append((agreement.PLAN_KEYRING, ""))
        build.records = records

    def _relayed(self, in_image: bool) -> list[Record]:
        """Return the records for TMPDIR if this step was started by a script in a container, which has its own."""
        env = self.caller.environment
        relayed = env.get(agreement.RELAYED_PREFIX + "TMPDIR", "")
        if not relayed or not (in_image or os.path.isdir(relayed)):
            return []
        # Unless a TaskProlog has set another for the step.
        still = (agreement.PLAN_IF_STILL, f"TMPDIR={env.get('TMPDIR', '')}")
        return [still, (agreement.PLAN_SET, f"TMPDIR={relayed}")]

    def _image_environment(self, build: Build, present: Sequence[str]) -> list[Record]:
        """Return the records for the environment that an image brings, adapted to what pyxis users expect."""
        brought, compatibility = self._default_image_environment(build, present), self.spec.compatibility
        if compatibility is None:
            return brought
        variable, assignments = compatibility.if_image_has
        if not any(text.startswith(variable + "=") for _, text in brought):
            assignments = ()
        return [
            *((agreement.PLAN_UNSET, name) for name in compatibility.drop),
            *brought,
            *compatibility.defaults,
            *assignments,
        ]

    def _directory(self, build: Build, images: str) -> list[Record]:
        if self.spec.compatibility and self.spec.compatibility.start_in_image:
            return [(agreement.PLAN_DIRECTORY, images or "/")]
        start, lost = self.user_directories.directory(build)
        if self.spec.compatibility:
            return [(agreement.PLAN_DIRECTORY, images or "/" if lost else start)]
        if lost and images and start == "/":
            start = images
        if lost and build.root and not self.spec.like_ch_run:
            log.warning(f"{lost}; starting in {start}")
        else:
            # A process that joins: the container's maker has already warned.
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
            None if spec.like_ch_run else lambda kind: self._requested_image_environment(build, kind, assign),
        )
        if not self.joining:
            for kind, text in records:
                stray = stray_dollar(text) if kind == agreement.PLAN_SET_ANYWHERE and "$" in text else ""
                if stray:
                    what = f"{spec.label('set-env')}: {text[:SHOWN]}: the $ in {stray}"
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
                self._warn_of_both(build, path, identity)
            return text
        try:
            return text_of(places.open_file(build, path.removeprefix(_IMAGES)), path, self.given[path])
        except OSError as error:
            raise ChError(f"{self.given[path]}: can't read environment file") from error

    def _warn_of_both(self, build: Build, path: str, identity: tuple[int, int]) -> None:
        """Warn that the host's file is used if the image has another one at that path."""
        try:
            fd = places.look_up(build, path, True)
        except OSError:
            return
        status = os.fstat(fd)
        os.close(fd)
        if (status.st_dev, status.st_ino) != identity:
            label = self.given[path].removesuffix(path)
            log.warning(
                f"{self.given[path]}: the host's file is used, but the image has one of that name too:"
                f" write {label}{_IMAGES}{path} for the image's, {label}{_HOSTS}{path} for the host's"
            )

    # --- the image's own -----------------------------------------------------

    def _requested_image_environment(self, build: Build, kind: str, assign: str) -> list[Record]:
        """Return the records for an image environment that the user asks for by set-env; ChError if there is none."""
        given = self.given[IMAGE_ENVIRONMENT]
        literal = read_image(build, IMAGE_ENVIRONMENT0, given)
        if literal is not None:
            return [one for one in _literal_records(literal) if not one[1].startswith(_SLURMS)]
        text = read_image(build, IMAGE_ENVIRONMENT, given)
        if text is not None:
            return [(assign, line) for line in parse_file(text, given, "\0" if kind == "file0" else "\n")]
        from . import image_environment

        # _default_image_environment has reported what isn't understood, unless it was turned off.
        quiet = self.joining or self.spec.image_env is not False
        found = image_environment.records(build, read_image, parse_file, quiet)
        if found is None:
            raise ChError(f"{given}: can't read environment file: the image has neither this nor another")
        return found

    def _default_image_environment(self, build: Build, present: Sequence[str]) -> list[Record]:
        """Return the records for the environment that the image brings; `present` are those of _PLACES it has.

        Files that can't be read are ignored, unless the user asks for the image's environment.
        """
        spec = self.spec
        if spec.image_env is False:
            return []
        read = read_image if spec.image_env else try_image
        if _CH in present:
            literal = read(build, IMAGE_ENVIRONMENT0, IMAGE_ENVIRONMENT0)
            if literal is not None:
                return self._keep_task_variables(_literal_records(literal))
            text = read(build, IMAGE_ENVIRONMENT, IMAGE_ENVIRONMENT) if spec.image_env else None
            if text is not None:
                lines = parse_file(text, IMAGE_ENVIRONMENT)
                return self._keep_task_variables([(agreement.PLAN_SET_ANYWHERE, line) for line in lines])
        if not spec.image_env and not (APPTAINER_ENVIRONMENT in present or ENROOT_START in present):
            return []
        from . import image_environment

        found = image_environment.records(build, read, parse_file if spec.image_env else None, self.joining)
        if found is None and spec.image_env:
            raise ChError(f"{spec.label('image-env')}: {spec.image} has no environment of its own")
        return self._keep_task_variables(found or [])

    def _keep_task_variables(self, records: Sequence[Record]) -> list[Record]:
        """Return the records of an image's environment, changed so that a task's own variables keep their values.

        These are the variables of Slurm and MPI, those that the user sets with --export, and those whose value in
        the task differs from the step's because a prolog or a plugin has set them.
        """
        environment = self.caller.environment
        keep: Sequence[str] = ()
        if self.spec.compatibility:
            keep = self.spec.compatibility.keep
            environment = {
                name: value for name, value in environment.items() if name not in self.spec.compatibility.drop
            }
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


def _images_directory(build: Build, present: Sequence[str]) -> str:
    """Return the working directory that the image defines, or "" if it defines none, or one that doesn't exist."""
    text = try_image(build, agreement.IMAGE_METADATA, agreement.IMAGE_METADATA) if _CH in present else None
    directory = ""
    if text is not None:
        directory = working_directory(text)
    elif ENROOT_START in present:
        from . import image_environment

        directory = image_environment.enroot_directory(build, try_image)
    return directory if directory.strip("/") and places.exists(build, directory + "/.") else ""


def _literal_records(text: str) -> list[Record]:
    """Return the records for the file that `slurm-ch pull` writes: the values are taken literally."""
    assignments = [unquoted(line) for line in text.split("\0")]
    return [(agreement.PLAN_SET, line) for line in assignments if is_name(line.partition("=")[0])]


def load_readers() -> None:
    """Import the modules that read an image's environment now: after entering a container, they can't be found."""
    from . import image_environment  # noqa: F401


def apply_inside(environment: Environment) -> Build:
    """Apply `environment` in a process that has already entered the container; return its build."""
    build = Build()
    build.root_fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    # Nothing may be imported in here: the path of a module leads to a file of the image.
    finders, sys.meta_path[:] = sys.meta_path[:], []
    try:
        environment.apply(build)
    finally:
        sys.meta_path[:] = finders
    return build


def is_task_variable(name: str) -> bool:
    """Whether the variable is one of Slurm's, MPI's or a device's, whose value may differ from task to task."""
    return name.startswith((*_SLURMS, *_TASKS)) or name.endswith(_TASKS_ENDINGS)
