# SPDX-License-Identifier: Apache-2.0
"""Merge the edits of the requested devices into what has to be done for a container.

The specs' hooks are never run. For known hooks, slurm_ch does the same by its own
means; others are reported.
"""

from __future__ import annotations

import os

from ..errors import ChError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .records import Document, Edits, HookProgram, Mount, Node

_HOSTS = ("/dev", "/proc", "/sys")
_HOOK_PROGRAMS = ("cdi-hook", "ctk-hook", "-ctk")


class Injection:
    """The merged edits of all requested devices."""

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
        self.nodes: dict[str, Node] = {}
        self.mounts: dict[str, Mount] = {}
        self.links: dict[str, str] = {}  # target by link
        self.cache = False  # whether to update the dynamic linker's cache
        self.folders: list[str] = []  # directories of libraries, for the cache
        self.cuda_compat: str | None = None  # the driver's version, if a hook would enable newer CUDA libraries
        self.gids: dict[int, str] = {}  # group id: the spec that asks for it
        self.timeout: int | None = None  # of the cache's update, in seconds
        self.remarks: list[str] = []  # warnings: what can't be done
        self.notes: list[str] = []  # for --verbose: what needn't be done

    def add_folders(self, names: Sequence[str]) -> None:
        """Update the dynamic linker's cache, with these directories."""
        self.cache = True
        self.folders += [name for name in names if name not in self.folders]

    def remark(self, text: str) -> None:
        """Add a warning, once."""
        if text not in self.remarks:
            self.remarks.append(text)

    def note(self, text: str) -> None:
        """Add a note for --verbose, once."""
        if text not in self.notes:
            self.notes.append(text)


def apply(injection: Injection, chosen: Iterable[tuple[Document, str]], applied: set[str]) -> list[str]:
    """Add the chosen devices' edits to `injection`, and return their assignments of variables.

    `applied` remembers what was added: a document's common edits are added only once.
    """
    env: list[str] = []
    for document, name in chosen:
        for key, edits in ((document.file, document.edits), (f"{document.file}\0{name}", document.devices[name])):
            # Variables are set for each request: rules between two requests may have changed them.
            env += [word for word in edits.env if word not in env]
            if key not in applied:
                applied.add(key)
                _add(injection, edits, document.file)
    return env


def _add(injection: Injection, edits: Edits, file: str) -> None:
    for node in edits.nodes:
        injection.nodes[os.path.normpath(node.path)] = node
    for mount in edits.mounts:
        _check_mount(mount, injection)
        target = os.path.normpath(mount.target)
        injection.mounts[target] = mount
        folder, name = os.path.split(target)
        # A library: not every spec has a hook that updates the cache.
        if name.endswith(".so") or ".so." in name:
            injection.add_folders([folder])
    for hook in edits.hooks:
        _add_hook(injection, hook)
    injection.gids |= {gid: f"{file}: additionalGids" for gid in edits.gids if gid}
    if edits.rdt:
        injection.remark(f"{file}: intelRdt: can't be set without privileges")
    for host, name in edits.networks:
        # The container sees all the host's interfaces, under the host's names.
        if host != name:
            injection.remark(f"{file}: netDevices: {host} keeps its name in the container, it isn't {name}")


_BINDS = frozenset(("", "none", "bind", "rbind"))
_HONOURED = frozenset(
    ("bind", "rbind", "ro", "rw", "nosuid", "suid", "nodev", "dev", "noexec", "exec", "private", "rprivate")
)


def _check_mount(mount: Mount, injection: Injection) -> None:
    if mount.type not in _BINDS and not {"bind", "rbind"} & set(mount.options):
        raise ChError(f"{mount.where}: only binds can be made, not the type {mount.type}: {mount.target}")
    for option in mount.options:
        if option not in _HONOURED:
            injection.remark(f"{mount.where}: option ignored: {option}: {mount.target}")


def _add_hook(injection: Injection, hook: HookProgram) -> None:
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


def _hook_words(hook: HookProgram) -> list[str]:
    """Return a hook's arguments, beginning with its subcommand.

    The program is called as `nvidia-cdi-hook CMD` or `nvidia-ctk hook CMD`, and some
    specs leave out the program's name.
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
        # A device of the host, with the host's permissions.
        if path.startswith(_HOSTS):
            injection.note(f"{what}: not needed: {path} is the host's")
        else:
            injection.remark(f"{what}: not done: {path}")
