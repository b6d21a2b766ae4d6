# SPDX-License-Identifier: Apache-2.0
"""The contents of a spec file of the Container Device Interface, as records. `where` is file and key, for messages."""

from __future__ import annotations

from ..errors import ChError


class Malformed(ChError):
    """A spec file is invalid; `kind` is its kind of devices, or None if that can't be read."""

    def __init__(self, text: str, kind: str | None = None) -> None:
        super().__init__(text)
        self.kind = kind


class Node:
    """A device node: path in the container, `source` on the host, type and numbers (None if the spec has none)."""

    __slots__ = ("major", "minor", "path", "source", "type", "where")

    def __init__(self, where: str, path: str, source: str, type: str, numbers: tuple[int | None, int | None]) -> None:
        self.where = where
        self.path = path
        self.source = source
        self.type = type
        self.major, self.minor = numbers


class Mount:
    """A mount: source on the host, target in the container, file system type, options."""

    __slots__ = ("options", "source", "target", "type", "where")

    def __init__(self, where: str, source: str, target: str, type: str, options: tuple[str, ...]) -> None:
        self.where = where
        self.source = source
        self.target = target
        self.type = type
        self.options = options


class HookProgram:
    """A hook of a spec: a program to be run at the point `name` of a container's life; `timeout` in seconds."""

    __slots__ = ("args", "name", "path", "timeout", "where")

    def __init__(self, where: str, name: str, path: str, args: tuple[str, ...], timeout: int | None) -> None:
        self.where = where
        self.name = name
        self.path = path
        self.args = args
        self.timeout = timeout


class Edits:
    """A spec's changes to a container."""

    __slots__ = ("env", "gids", "hooks", "mounts", "networks", "nodes", "rdt")

    def __init__(self) -> None:
        self.env: list[str] = []
        self.nodes: list[Node] = []
        self.mounts: list[Mount] = []
        self.hooks: list[HookProgram] = []
        self.gids: list[int] = []
        self.networks: list[tuple[str, str]] = []  # name on the host, name in the container
        self.rdt = False


class Document:
    """A spec file: the edits of each device, and the common ones, which belong to every device."""

    __slots__ = ("devices", "edits", "file", "kind")

    def __init__(self, file: str, kind: str, edits: Edits, devices: dict[str, Edits]) -> None:
        self.file = file
        self.kind = kind
        self.edits = edits
        self.devices = devices
