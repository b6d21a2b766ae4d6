# SPDX-License-Identifier: Apache-2.0
"""Devices by the Container Device Interface: from what was asked for to what is to be done.

Spec files are looked for and read here, and nothing else is touched. Of a
device that is in several directories the last directory's counts. Hooks are
understood, not run: what they are there for is done by our own means, or it
is said that it isn't.
"""

from __future__ import annotations

import os
import stat

from ..errors import ChError, UsageError
from . import names as cdinames
from . import reader as cdi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

DEFAULT_DIRECTORIES = "/etc/cdi:/var/run/cdi"

# Far more than any vendor writes; a wrong path must not fill the memory.
_MAX_BYTES = 16 << 20

# What Slurm gives each task (or, outside of it, the user) must not become the same for all.
_TASKS_OWN = (
    "SLURM_", "PMI_", "PMIX_", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES",
    "ZE_AFFINITY_MASK", "GPU_DEVICE_ORDINAL",
)  # fmt: skip

_HOSTS = ("/dev", "/proc", "/sys")
_HOOK_PROGRAMS = ("cdi-hook", "ctk-hook", "-ctk")


class Injection:
    """All that the devices asked for do to a container."""

    __slots__ = (
        "cache",
        "cuda_compat",
        "env",
        "folders",
        "gids",
        "links",
        "mounts",
        "nodes",
        "notes",
        "remarks",
        "timeout",
    )

    def __init__(self) -> None:
        self.env: list[list[str]] = []  # for each request, in order
        self.nodes: dict[str, cdi.Node] = {}
        self.mounts: dict[str, cdi.Mount] = {}
        self.links: dict[str, str] = {}  # target by link
        self.cache = False  # whether the dynamic linker's cache is to be updated
        self.folders: list[str] = []  # of libraries, for that
        self.cuda_compat: str | None = None  # the driver's version, if newer CUDA libraries shall be preferred
        self.gids: dict[int, str] = {}  # with where each was asked for
        self.timeout: int | None = None  # seconds that the update of the cache may take
        self.remarks: list[str] = []  # what can't be done
        self.notes: list[str] = []  # what needn't be done

    def add_folders(self, names: Sequence[str]) -> None:
        """Have the dynamic linker's cache updated, with some more directories in it."""
        self.cache = True
        self.folders += [name for name in names if name not in self.folders]

    def remark(self, text: str) -> None:
        """Keep something to be said, once."""
        if text not in self.remarks:
            self.remarks.append(text)

    def note(self, text: str) -> None:
        """Keep something to be said to who wants details, once."""
        if text not in self.notes:
            self.notes.append(text)


def directories(option: str | None, environment: Mapping[str, str]) -> list[str]:
    """Return where specs are: the option, CH_RUN_CDI_DIRS, or the standard's directories."""
    text = option or environment.get("CH_RUN_CDI_DIRS") or DEFAULT_DIRECTORIES
    return [part for part in text.split(":") if part]


def find(
    requests: Sequence[tuple[str, str]], places: Sequence[str], cwd: str, environment: Mapping[str, str]
) -> Injection:
    """Return what `requests`, pairs of value and label, amount to.

    Relative paths are taken from `cwd`; `environment` is what a task has already. ChError when a spec that is needed is
    malformed, UsageError when there is no such device.
    """
    injection = Injection()
    kinds = {text.partition("=")[0] for text, _ in requests if not cdinames.is_file(text)}
    library = _Library(kinds, places, injection).read(cwd) if kinds else None
    applied: set[str] = set()
    for text, label in requests:
        if library and text == cdinames.EVERY:
            chosen = library.every()
        elif library and not cdinames.is_file(text):
            chosen = library.choose(text, label)
        else:
            document = _read_named(os.path.join(cwd, text), text, label)
            chosen = [(document, name) for name in _all_names(document.devices)]
        env = _apply(injection, chosen, applied)
        kept = {word for word in env if word.startswith(_TASKS_OWN) and word.partition("=")[0] in environment}
        for word in sorted(kept):
            injection.remark(
                f"{text}: {word.partition('=')[0]} is each task's own, not set to {word.partition('=')[2]}"
            )
        injection.env.append([word for word in env if word not in kept])
    return injection


def check_files(requests: Sequence[tuple[str, str]]) -> None:
    """Raise UsageError if a spec file that was asked for by its absolute path is here, and malformed."""
    for text, label in requests:
        if text.startswith("/"):
            try:
                _read_named(text, text, label)
            except UsageError as error:
                if not isinstance(error.__cause__, OSError):
                    raise


def _read_named(path: str, text: str, label: str) -> cdi.Document:
    try:
        return cdi.parse(_read(path), path)
    except cdi.Malformed as error:
        raise UsageError(f"{label}: {error}") from None
    except OSError as error:
        raise UsageError(f"{label}={text}: can't read the device spec") from error


def _all_names(devices: Mapping[str, object]) -> list[str]:
    """Return the names that together are all devices: one called so, or every one."""
    return ["all"] if "all" in devices else list(devices)


def _read(path: str) -> bytes:
    # Not blocking: it may be a FIFO that nobody writes to.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise cdi.Malformed(f"{path}: not a regular file")
        with open(fd, "rb", closefd=False) as file:
            data = file.read(_MAX_BYTES + 1)
    finally:
        os.close(fd)
    if len(data) > _MAX_BYTES:
        raise cdi.Malformed(f"{path}: larger than {_MAX_BYTES >> 20} MiB")
    return data


class _Library:
    """The specs of some kinds, or of every kind, in a list of directories."""

    __slots__ = ("_found", "_injection", "_kinds", "_places", "_skipped", "_twice")

    def __init__(self, kinds: set[str], places: Sequence[str], injection: Injection) -> None:
        self._kinds = kinds
        self._places = places
        self._injection = injection
        self._found: dict[str, dict[str, cdi.Document]] = {}  # by kind, then name
        self._twice: dict[tuple[str, str], str] = {}
        self._skipped: list[str] = []

    def read(self, cwd: str) -> _Library:
        for place in self._places:
            self._add(os.path.join(cwd, place))
        return self

    def _add(self, place: str) -> None:
        here: dict[tuple[str, str], cdi.Document] = {}
        for path in _spec_files(place, self._injection):
            document = self._parse(path)
            if document is None or not self._kinds & {document.kind, cdinames.EVERY}:
                continue
            for name in document.devices:
                key = (document.kind, name)
                if key in here:
                    self._twice[key] = f"{here[key].file} and {document.file}"
                else:
                    # What an earlier directory said of it, conflicts too, is void.
                    self._twice.pop(key, None)
                here[key] = document
                self._found.setdefault(document.kind, {})[name] = document

    def _parse(self, path: str) -> cdi.Document | None:
        try:
            return cdi.parse(_read(path), path)
        except cdi.Malformed as error:
            if error.kind in self._kinds:
                raise
            if error.kind is None or cdinames.EVERY in self._kinds:
                # It might be about what was asked for; nobody can tell.
                self._skip(f"device spec skipped: {error}")
            else:
                self._injection.note(f"device spec skipped: {error}")
        except OSError as error:
            self._skip(f"device spec skipped: {path}: {error.strerror}")
        return None

    def _skip(self, text: str) -> None:
        self._skipped.append(text)
        self._injection.remark(text)

    def every(self) -> list[tuple[cdi.Document, str]]:
        """Return all devices of all kinds; that there are none is no error."""
        if not self._found:
            self._injection.note(f"no devices in {':'.join(self._places)}")
        return [each for kind in self._found for each in self._documents(kind, _all_names(self._found[kind]))]

    def choose(self, text: str, label: str) -> list[tuple[cdi.Document, str]]:
        """Return the devices that `text` means, each with the document it is in."""
        kind, name = cdinames.split(text)
        devices = self._found.get(kind, {})
        skipped = "".join(f"; {words}" for words in self._skipped)
        if not devices:
            raise UsageError(f"{label}={text}: no devices of this kind in {':'.join(self._places)}{skipped}")
        if name is None or name == "all":
            return self._documents(kind, _all_names(devices))
        if name not in devices:
            raise UsageError(f"{label}={text}: no such device, only {', '.join(devices)}{skipped}")
        return self._documents(kind, [name])

    def _documents(self, kind: str, names: Sequence[str]) -> list[tuple[cdi.Document, str]]:
        for name in names:
            if (kind, name) in self._twice:
                raise ChError(f"{kind}={name} is in two specs: {self._twice[kind, name]}")
        return [(self._found[kind][name], name) for name in names]


def _spec_files(place: str, injection: Injection) -> list[str]:
    try:
        names = sorted(os.listdir(place))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        injection.remark(f"directory of device specs skipped: {place}: {error.strerror}")
        return []
    return [os.path.join(place, name) for name in names if name.endswith((".json", ".yaml"))]


# ---- From documents to what is to be done ----


def _apply(injection: Injection, chosen: Iterable[tuple[cdi.Document, str]], applied: set[str]) -> list[str]:
    """Add the chosen devices' edits, each document's common ones only once, and return those to the environment."""
    env: list[str] = []
    for document, name in chosen:
        for key, edits in ((document.file, document.edits), (f"{document.file}\0{name}", document.devices[name])):
            # The environment is set again: rules between the two requests may have changed it.
            env += [word for word in edits.env if word not in env]
            if key not in applied:
                applied.add(key)
                _add(injection, edits, document.file)
    return env


def _add(injection: Injection, edits: cdi.Edits, file: str) -> None:
    for node in edits.nodes:
        injection.nodes[os.path.normpath(node.path)] = node
    for mount in edits.mounts:
        _check_mount(mount, injection)
        target = os.path.normpath(mount.target)
        injection.mounts[target] = mount
        folder, name = os.path.split(target)
        # Not every spec has a hook for its libraries.
        if name.endswith(".so") or ".so." in name:
            injection.add_folders([folder])
    for hook in edits.hooks:
        _add_hook(injection, hook)
    injection.gids |= {gid: f"{file}: additionalGids" for gid in edits.gids if gid}
    if edits.rdt:
        injection.remark(f"{file}: intelRdt: can't be set without privileges")
    for host, name in edits.networks:
        # The host's interfaces are all there, under the host's names.
        if host != name:
            injection.remark(f"{file}: netDevices: {host} keeps its name in the container, it isn't {name}")


_BINDS = frozenset(("", "none", "bind", "rbind"))
_HONOURED = frozenset(
    ("bind", "rbind", "ro", "rw", "nosuid", "suid", "nodev", "dev", "noexec", "exec", "private", "rprivate")
)


def _check_mount(mount: cdi.Mount, injection: Injection) -> None:
    if mount.type not in _BINDS and not {"bind", "rbind"} & set(mount.options):
        raise ChError(f"{mount.where}: only binds can be made, not the type {mount.type}: {mount.target}")
    for option in mount.options:
        if option not in _HONOURED:
            injection.remark(f"{mount.where}: option ignored: {option}: {mount.target}")


def _add_hook(injection: Injection, hook: cdi.Hook) -> None:
    words = _hook_words(hook)
    command = words[0] if words else ""
    what = f"{hook.where}: {hook.name} hook {' '.join((hook.path, *words[:1]))}"
    if not os.path.basename(hook.path).endswith(_HOOK_PROGRAMS):
        injection.remark(f"{what}: not known, not run")
    elif command in ("update-ldcache", "create-soname-symlinks"):
        injection.add_folders(_values(words, "folder"))
        injection.timeout = hook.timeout or injection.timeout
    elif command == "create-symlinks":
        _add_links(injection, words, what)
    elif command == "chmod":
        _check_chmod(injection, words, what)
    elif command == "enable-cuda-compat":
        injection.cuda_compat = (_values(words, "host-driver-version") or ["0"])[0]
    elif command == "disable-device-node-modification":
        injection.note(f"{what}: not needed, device nodes can't be changed anyway")
    else:
        injection.remark(f"{what}: not known, not run")


def _hook_words(hook: cdi.Hook) -> list[str]:
    """Return a hook's arguments from its subcommand on.

    Both `nvidia-cdi-hook CMD` and `nvidia-ctk hook CMD` are in use, and some
    specs leave the program's name out.
    """
    words = list(hook.args)
    if words and (words[0] == hook.path or os.path.basename(words[0]).endswith(_HOOK_PROGRAMS)):
        del words[0]
    if words and words[0] == "hook":
        del words[0]
    return words


def _values(words: Sequence[str], name: str) -> list[str]:
    """Return all values of the option `name`, given as `--name V`, `--name=V` or `--name V,V`."""
    found: list[str] = []
    rest = iter(words)
    for word in rest:
        flag, equals, value = word.lstrip("-").partition("=")
        if word.startswith("-") and flag == name:
            found += (value if equals else next(rest, "")).split(",")
    return [value for value in found if value]


def _add_links(injection: Injection, words: Sequence[str], what: str) -> None:
    for value in _values(words, "link"):
        target, colons, link = value.partition("::")
        if not colons or not target or not link.startswith("/") or "::" in link:
            injection.remark(f"{what}: not TARGET::LINK: {value}")
        else:
            injection.links[link] = target
    for name in ("csv-filename", "host-root"):
        if _values(words, name):
            injection.remark(f"{what}: --{name} is not known, not done")


def _check_chmod(injection: Injection, words: Sequence[str], what: str) -> None:
    for path in _values(words, "path"):
        # The host's own, which the user may use as ever.
        if path.startswith(_HOSTS):
            injection.note(f"{what}: not needed: {path} is the host's")
        else:
            injection.remark(f"{what}: not done: {path}")
