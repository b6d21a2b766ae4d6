# SPDX-License-Identifier: Apache-2.0
"""From devices' documents to what is to be done for a container.

Hooks are understood, not run: what they are there for is done by our own means,
or it is said that it isn't.
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
        self.nodes: dict[str, Node] = {}
        self.mounts: dict[str, Mount] = {}
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


def apply(injection: Injection, chosen: Iterable[tuple[Document, str]], applied: set[str]) -> list[str]:
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


def _add(injection: Injection, edits: Edits, file: str) -> None:
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
