# SPDX-License-Identifier: Apache-2.0
"""Files that are added to an image's layers: its configuration as files in /ch, and mount points.

ch-image writes the same files; ch-join and the launcher read them.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from .. import agreement
from ..errors import ChError

if TYPE_CHECKING:
    from .merge import Tree

METADATA_MAX = 16 << 20
# The files in which Apptainer and enroot keep an image's environment.
OTHERS_ENVIRONMENT = (agreement.APPTAINER_ENVIRONMENT[1:], agreement.ENROOT_START[1:])

# Mount points for the directories and files of the host that a container shows.
DIRECTORIES = ("dev", "proc", "sys", "tmp", "root", "home", "mnt", "etc")
FILES = ("etc/passwd", "etc/group", "etc/hosts", "etc/resolv.conf")


class Config:
    """An image's configuration: `env` as NAME=VALUE, in order."""

    __slots__ = (
        "architecture",
        "command",
        "directory",
        "entrypoint",
        "env",
        "history",
        "labels",
        "shell",
        "user",
        "volumes",
    )

    def __init__(self) -> None:
        self.architecture = ""
        self.env: list[str] = []
        self.entrypoint: list[str] = []
        self.command: list[str] = []
        self.directory = ""
        self.user = ""
        self.labels: dict[str, str] = {}
        self.volumes: list[str] = []
        self.shell: list[str] = []
        self.history: list[Any] = []


def parse(raw: bytes, what: str) -> Config:
    """Return an image's configuration from its blob; ChError if it isn't a JSON object. Invalid parts are ignored."""
    try:
        value = json.loads(raw or b"{}")
    except (ValueError, RecursionError):
        raise ChError(f"{what}: its configuration is not JSON") from None
    if not isinstance(value, dict):
        raise ChError(f"{what}: its configuration is not a JSON object")
    inner = value.get("config")
    inner = inner if isinstance(inner, dict) else {}
    config = Config()
    variant = value.get("variant")
    config.architecture = _text(value.get("architecture")) + (
        f"/{variant}" if isinstance(variant, str) and variant else ""
    )
    config.env = [line for line in _strings(inner.get("Env")) if line.partition("=")[0] and "=" in line]
    config.entrypoint = _strings(inner.get("Entrypoint"))
    config.command = _strings(inner.get("Cmd"))
    config.shell = _strings(inner.get("Shell"))
    config.directory = _text(inner.get("WorkingDir"))
    config.user = _text(inner.get("User"))
    for name, text in _pairs(inner.get("Labels")):
        config.labels[name] = _text(text)
    config.volumes = [_text(name) for name, _ in _pairs(inner.get("Volumes"))]
    history = value.get("history")
    config.history = history if isinstance(history, list) else []
    return config


def _text(value: object) -> str:
    return value if isinstance(value, str) and "\0" not in value else ""


def _strings(value: object) -> list[str]:
    if isinstance(value, str):
        # Docker's shell form, which some tools don't convert.
        return ["/bin/sh", "-c", value]
    return [one for one in value if isinstance(one, str) and "\0" not in one] if isinstance(value, list) else []


def _pairs(value: object) -> list[tuple[Any, Any]]:
    return list(value.items()) if isinstance(value, dict) else []


def _line(assignment: str) -> str:
    """Return an assignment for an environment file: a value in single quotes is quoted again, as readers remove one."""
    name, _, value = assignment.partition("=")
    return f"{name}='{value}'" if len(value) >= 2 and value[0] == value[-1] == "'" else assignment


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def strings_file(strings: list[str]) -> bytes:
    """Return a list of strings in ch-image's format: "angi", then each string after its length."""
    parts = [b"angi"]
    for one in strings:
        data = _bytes(one)
        parts += [len(data).to_bytes(4, "big"), data]
    return b"".join(parts)


def metadata(config: Config, origin: dict[str, str]) -> bytes:
    """Return the text of /ch/metadata.json: ch-image's members, and those of `origin`."""
    value: dict[str, Any] = {
        "arch": config.architecture,
        "cwd": config.directory or "/",
        "env": dict(line.split("=", 1) for line in config.env),
        "history": config.history,
        "labels": config.labels,
        "shell": config.shell or ["/bin/sh", "-c"],
        "volumes": config.volumes,
        "entrypoint": config.entrypoint,
        "cmd": config.command,
        "user": config.user,
        **origin,
    }
    return _bytes(json.dumps(value, indent=2, sort_keys=True) + "\n")


def add(tree: Tree, config: Config, origin: dict[str, str]) -> None:
    """Add the configuration and the mount points to an image."""
    own = tree.own_directory(agreement.IMAGE_METADATA.split("/")[1])

    def add_file(path: str, content: bytes) -> None:
        tree.file(own, os.path.basename(path), content)

    # Not if the image has another tool's environment, as when an image of Apptainer's was pushed as a layer: these
    # files would take precedence.
    if config.env or not any(tree.has(path) for path in OTHERS_ENVIRONMENT):
        add_file(
            agreement.IMAGE_ENVIRONMENT, _bytes("".join(_line(one) + "\n" for one in config.env if "\n" not in one))
        )
        # With NUL as separator, values may contain newlines.
        add_file(agreement.IMAGE_ENVIRONMENT0, _bytes("".join(_line(one) + "\0" for one in config.env)))
    lists = ((agreement.IMAGE_ENTRYPOINT, config.entrypoint), (agreement.IMAGE_COMMAND, config.command))
    for path, strings in lists:
        if strings:
            add_file(path, strings_file(strings))
        elif own.children is not None:
            own.children.pop(os.path.basename(path).encode(), None)
    add_file(agreement.IMAGE_METADATA, metadata(config, origin))
    mount_points(tree)
    for place in (*config.volumes, config.directory):
        if place.startswith("/") and ".." not in place.split("/"):
            tree.directory(place)


def mount_points(tree: Tree) -> None:
    """Add the mount points that the host's files need in a read-only image."""
    for name in DIRECTORIES:
        tree.directory(name, 0o1777 if name == "tmp" else 0o755)
    for name in FILES:
        tree.empty_file(name)


def from_metadata(raw: bytes | None) -> dict[str, Any]:
    """Convert the contents of /ch/metadata.json to the `config` object of an image's configuration."""
    try:
        value = json.loads(raw or b"{}")
    except (ValueError, RecursionError):
        value = {}
    if not isinstance(value, dict):
        value = {}
    found: dict[str, Any] = {}
    env = [f"{name}={text}" for name, text in _pairs(value.get("env"))]
    for key, member in (
        ("Env", env),
        ("Entrypoint", value.get("entrypoint")),
        ("Cmd", value.get("cmd")),
        ("WorkingDir", value.get("cwd")),
        ("User", value.get("user")),
        ("Labels", value.get("labels")),
    ):
        if member:
            found[key] = member
    return found
