# SPDX-License-Identifier: Apache-2.0
"""What a spec file of the Container Device Interface says: text in, values out.

https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md

Loaded only when devices are asked for. As the specification wants it, a field
that it doesn't know makes a spec malformed, and so does a field that is newer
than the version the spec claims.
"""

from __future__ import annotations

import json
import os
import sys

from .. import paths
from ..errors import ChError
from . import names as cdinames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any, NoReturn

# All releases of the specification; what a third number says never matters.
VERSIONS = ((0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (0, 6), (0, 7), (0, 8), (1, 0), (1, 1))

# Levels of YAML: far more than a spec has, and far fewer than a stack of 8 MiB bears.
_DEEP = 1000
_SPEC_FIELDS = ("cdiVersion", "kind", "annotations", "devices", "containerEdits")
_DEVICE_FIELDS = ("name", "annotations", "containerEdits")
_EDIT_FIELDS = (
    "env", "deviceNodes", "mounts", "hooks", "intelRdt", "additionalGids", "additionalGIDs", "netDevices",
)  # fmt: skip
_NODE_FIELDS = ("path", "hostPath", "type", "major", "minor", "fileMode", "permissions", "uid", "gid")
_MOUNT_FIELDS = ("hostPath", "containerPath", "type", "options")
_HOOK_FIELDS = ("hookName", "path", "args", "env", "timeout")
_RDT_FIELDS = ("closID", "l3CacheSchema", "memBwSchema", "enableCMT", "enableMBM", "schemata", "enableMonitoring")
_NET_FIELDS = ("hostInterfaceName", "name")

_HOOK_NAMES = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")


class Malformed(ChError):
    """A spec file that is none; `kind` is what it is about, where that can be told."""

    def __init__(self, text: str, kind: str | None = None) -> None:
        super().__init__(text)
        self.kind = kind


# `where` is file and key, for messages.


class Node:
    """A device node: where it shall be, where it is on the host, what it is (None: not said)."""

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


class Hook:
    """A program to be run at the point `name`; `timeout` in seconds."""

    __slots__ = ("args", "name", "path", "timeout", "where")

    def __init__(self, where: str, name: str, path: str, args: tuple[str, ...], timeout: int | None) -> None:
        self.where = where
        self.name = name
        self.path = path
        self.args = args
        self.timeout = timeout


class Edits:
    """What is to be done to a container."""

    __slots__ = ("env", "gids", "hooks", "mounts", "networks", "nodes", "rdt")

    def __init__(self) -> None:
        self.env: list[str] = []
        self.nodes: list[Node] = []
        self.mounts: list[Mount] = []
        self.hooks: list[Hook] = []
        self.gids: list[int] = []
        self.networks: list[tuple[str, str]] = []  # name on the host, name in the container
        self.rdt = False


class Document:
    """A spec file: the edits for each of its devices, and those for any of them."""

    __slots__ = ("devices", "edits", "file", "kind")

    def __init__(self, file: str, kind: str, edits: Edits, devices: dict[str, Edits]) -> None:
        self.file = file
        self.kind = kind
        self.edits = edits
        self.devices = devices


def parse(data: bytes, file: str) -> Document:
    """Return what `data` from `file` says (JSON, or YAML by the file's name); Malformed names the key."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise Malformed(f"{file}: not UTF-8 at byte {error.start}") from None
    is_yaml = not file.endswith(".json")
    tree = _load_yaml(text, file) if is_yaml else _load_json(text, file)
    kind = tree.get("kind") if isinstance(tree, dict) else None
    try:
        return _Reader(file, is_yaml).document(tree)
    except Malformed as error:
        error.kind = kind if isinstance(kind, str) else None
        raise


# ---- From text to a tree ----


def _load_json(text: str, file: str) -> object:
    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
        found: dict[str, object] = {}
        for name, value in items:
            if name in found:
                raise Malformed(f"{file}: the key {name!r} is there twice")
            found[name] = value
        return found

    def constant(word: str) -> NoReturn:
        raise Malformed(f"{file}: {word} is not JSON")

    try:
        tree: object = json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except json.JSONDecodeError as error:
        raise Malformed(f"{file}: not JSON: {error.msg}: line {error.lineno} column {error.colno}") from None
    except (ValueError, RecursionError):
        raise Malformed(f"{file}: not JSON: a number too long, or nested too deep") from None
    return tree


def _load_yaml(text: str, file: str) -> object:
    yaml = import_yaml(file)
    # Scalars stay text: a device called 0 and a version 1.1 are names here, whatever YAML takes them for.
    base: type = getattr(yaml, "CBaseLoader", yaml.BaseLoader)

    class Loader(base):  # type: ignore[misc]
        def construct_mapping(self, node: object, deep: bool = False) -> dict[object, object]:
            seen = set()
            for key, _ in node.value:  # type: ignore[attr-defined]
                name = key.value if isinstance(key.value, str) else id(key)
                if name in seen:
                    raise Malformed(f"{file}: the key {name!r} is there twice: line {key.start_mark.line + 1}")
                seen.add(name)
            return super().construct_mapping(node, deep)  # type: ignore[no-any-return]

    try:
        _check_depth(yaml, base, text, file)
        # Nothing but text, lists and dicts comes out of a BaseLoader.
        tree: object = yaml.load(text, Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        why = getattr(error, "problem", None) or "can't be read"
        where = f": line {mark.line + 1} column {mark.column + 1}" if mark else ""
        raise Malformed(f"{file}: not YAML: {why}{where}") from None
    except (RecursionError, ValueError, TypeError):
        raise Malformed(f"{file}: not YAML: nested too deep, or a character that can't be") from None
    return tree


def _check_depth(yaml: Any, loader: type, text: str, file: str) -> None:
    """Raise Malformed for what is nested so deep that the C loader's recursion could end the process.

    Each level takes a bracket or half a column, so an ordinary file is not looked at twice.
    """
    if 2 * max(map(len, text.split("\n"))) + text.count("[") + text.count("{") < _DEEP:
        return
    depth = 0
    for event in yaml.parse(text, loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEP:
            raise Malformed(f"{file}: not YAML: exceeded maximum nesting depth")


def import_yaml(file: str) -> Any:
    """Return PyYAML; ChError if it isn't installed.

    The launcher's sys.path has only the package's own parent: the installed
    copy's libraries and a checkout's are looked at too, last.
    """
    before = list(sys.path)
    sys.path += paths.library_directories()
    try:
        import yaml
    except ImportError:
        raise ChError(f"{file}: reading YAML needs PyYAML, which is not installed; JSON doesn't") from None
    finally:
        sys.path[:] = before
    return yaml


# ---- From a tree to a document ----


class _Reader:
    """Takes a tree apart and says where it is wrong.

    `key` is always where a value stands: `devices[0].containerEdits.env[1]`.
    """

    __slots__ = ("file", "needs", "yaml")

    def __init__(self, file: str, yaml: bool) -> None:
        self.file = file
        self.yaml = yaml
        self.needs: list[tuple[tuple[int, int], str]] = []

    def at(self, key: str) -> str:
        return f"{self.file}: {key}" if key else self.file

    def wrong(self, key: str, why: str) -> Malformed:
        return Malformed(f"{self.at(key)}: {why}")

    def document(self, tree: object) -> Document:
        top = self.fields(tree, "", _SPEC_FIELDS)
        version = self.version(self.string(top, "cdiVersion", ""))
        kind = self.string(top, "kind", "")
        if not cdinames.is_kind(kind):
            raise self.wrong("kind", f"not VENDOR/CLASS: {kind}")
        if "." in kind.partition("/")[2]:
            self.needs.append(((0, 6), "kind"))
        self.annotations(top, "")
        edits = self.edits(top, "")
        devices: dict[str, Edits] = {}
        for key, item in self.items(top, "devices", ""):
            fields = self.fields(item, key, _DEVICE_FIELDS)
            name = self.string(fields, "name", key)
            if not cdinames.is_device(name):
                raise self.wrong(f"{key}.name", f"not a device's name: {name}")
            if name in devices:
                raise self.wrong(f"{key}.name", f"is there twice: {name}")
            if not name[0].isalpha():
                self.needs.append(((0, 5), f"{key}.name"))
            self.annotations(fields, key)
            devices[name] = self.edits(fields, key)
        if not devices:
            raise self.wrong("devices", "there are none")
        for least, key in self.needs:
            if least > version:
                raise self.wrong(
                    key, f"needs cdiVersion {least[0]}.{least[1]}.0, but this is {version[0]}.{version[1]}.0"
                )
        return Document(self.file, kind, edits, devices)

    def version(self, text: str) -> tuple[int, int]:
        numbers = text.removeprefix("v").split(".")
        if len(numbers) != 3 or not all(number.isascii() and number.isdigit() for number in numbers):
            raise self.wrong("cdiVersion", f"not a version: {text}")
        for version in VERSIONS:
            if numbers[:2] == [str(version[0]), str(version[1])]:
                return version
        last = VERSIONS[-1]
        raise self.wrong("cdiVersion", f"{text} is not known, only versions up to {last[0]}.{last[1]}.0")

    def edits(self, parent: dict[str, object], above: str) -> Edits:
        edits = Edits()
        if "containerEdits" not in parent:
            return edits
        where = _join(above, "containerEdits")
        fields = self.fields(parent["containerEdits"], where, _EDIT_FIELDS)
        for key, item in self.items(fields, "env", where):
            edits.env.append(self.assignment(item, key))
        edits.nodes += [self.node(item, key) for key, item in self.items(fields, "deviceNodes", where)]
        edits.mounts += [self.mount(item, key) for key, item in self.items(fields, "mounts", where)]
        edits.hooks += [self.hook(item, key) for key, item in self.items(fields, "hooks", where)]
        if "intelRdt" in fields:
            self.rdt(fields["intelRdt"], f"{where}.intelRdt")
            edits.rdt = True
        for name in ("additionalGids", "additionalGIDs"):
            for key, item in self.items(fields, name, where):
                self.needs.append(((0, 7), key))
                edits.gids.append(self.number(item, key, 0, 2**32 - 1))
        for key, item in self.items(fields, "netDevices", where):
            self.needs.append(((1, 1), key))
            names = self.fields(item, key, _NET_FIELDS)
            edits.networks.append((self.string(names, "hostInterfaceName", key), self.string(names, "name", key)))
        return edits

    def node(self, item: object, key: str) -> Node:
        fields = self.fields(item, key, _NODE_FIELDS)
        path = self.path(fields, "path", key)
        source = path
        if "hostPath" in fields:
            self.needs.append(((0, 5), f"{key}.hostPath"))
            source = self.path(fields, "hostPath", key)
        kind = self.string(fields, "type", key, "")
        if kind not in ("", "b", "c", "u", "p"):
            raise self.wrong(f"{key}.type", f"not one of b, c, u, p: {kind}")
        permissions = self.string(fields, "permissions", key, "")
        if not set(permissions) <= set("rwm"):
            raise self.wrong(f"{key}.permissions", f"not made of r, w, m: {permissions}")
        for name in ("fileMode", "uid", "gid"):
            self.optional_number(fields, name, key, 0, 2**32 - 1)
        major = self.optional_number(fields, "major", key, 0, 2**63 - 1)
        minor = self.optional_number(fields, "minor", key, 0, 2**63 - 1)
        return Node(self.at(key), path, source, kind, (major, minor))

    def mount(self, item: object, key: str) -> Mount:
        fields = self.fields(item, key, _MOUNT_FIELDS)
        if "type" in fields:
            self.needs.append(((0, 4), f"{key}.type"))
        source = self.path(fields, "hostPath", key)
        target = self.path(fields, "containerPath", key)
        if os.path.normpath(target) in ("/", "//"):
            raise self.wrong(f"{key}.containerPath", f"is the root: {target}")
        options = tuple(self.text(value, where) for where, value in self.items(fields, "options", key))
        return Mount(self.at(key), source, target, self.string(fields, "type", key, ""), options)

    def hook(self, item: object, key: str) -> Hook:
        fields = self.fields(item, key, _HOOK_FIELDS)
        name = self.string(fields, "hookName", key)
        if name not in _HOOK_NAMES:
            raise self.wrong(f"{key}.hookName", f"not a hook's name: {name}")
        path = self.path(fields, "path", key)
        args = tuple(self.text(value, where) for where, value in self.items(fields, "args", key))
        for where, value in self.items(fields, "env", key):
            self.assignment(value, where)
        return Hook(self.at(key), name, path, args, self.optional_number(fields, "timeout", key, 1, 2**31))

    def rdt(self, item: object, key: str) -> None:
        self.needs.append(((0, 7), key))
        fields = self.fields(item, key, _RDT_FIELDS)
        for name in ("schemata", "enableMonitoring"):
            if name in fields:
                self.needs.append(((1, 1), f"{key}.{name}"))
        for name in ("closID", "l3CacheSchema", "memBwSchema"):
            self.string(fields, name, key, "")
        for where, value in self.items(fields, "schemata", key):
            self.text(value, where)

    def annotations(self, parent: dict[str, object], above: str) -> None:
        if "annotations" not in parent:
            return
        key = _join(above, "annotations")
        values = parent["annotations"]
        if not isinstance(values, dict):
            raise self.wrong(key, "not an object")
        for value in values.values():
            self.text(value, key)
        if values:
            self.needs.append(((0, 6), key))

    # ---- Single values ----

    def fields(self, value: object, key: str, known: Sequence[str]) -> dict[str, object]:
        """Return the fields of an object that have a value."""
        if not isinstance(value, dict):
            raise self.wrong(key, "not an object")
        for name in value:
            if name not in known:
                raise self.wrong(_join(key, _quoted(name)), "unknown field")
        return {name: item for name, item in value.items() if item is not None and item != ""}

    def items(self, fields: dict[str, object], name: str, above: str) -> Iterator[tuple[str, object]]:
        """Yield each item of a list that may be missing, with where it stands."""
        value = fields.get(name, [])
        key = _join(above, name)
        if not isinstance(value, list):
            raise self.wrong(key, "not a list")
        for index, item in enumerate(value):
            yield f"{key}[{index}]", item

    def text(self, value: object, key: str) -> str:
        if not isinstance(value, str):
            raise self.wrong(key, "not a string")
        if "\0" in value or not _encodes(value):
            raise self.wrong(key, "has a NUL or half a character in it")
        return value

    def string(self, fields: dict[str, object], name: str, above: str, default: str | None = None) -> str:
        key = _join(above, name)
        if name in fields:
            return self.text(fields[name], key)
        if default is None:
            raise self.wrong(key, "is missing")
        return default

    def path(self, fields: dict[str, object], name: str, above: str) -> str:
        path = self.string(fields, name, above)
        if not path.startswith("/"):
            raise self.wrong(_join(above, name), f"not an absolute path: {path}")
        if "\n" in path:
            raise self.wrong(_join(above, name), "has a newline in it")
        return path

    def assignment(self, value: object, key: str) -> str:
        text = self.text(value, key)
        name, equals, _ = text.partition("=")
        if not equals or not name:
            raise self.wrong(key, f"not NAME=VALUE: {text}")
        return text

    def number(self, value: object, key: str, low: int, high: int) -> int:
        number = _yaml_number(value) if self.yaml and isinstance(value, str) else value
        if not isinstance(number, int) or isinstance(number, bool) or not low <= number <= high:
            raise self.wrong(key, f"not a whole number from {low} to {high}")
        return number

    def optional_number(self, fields: dict[str, object], name: str, above: str, low: int, high: int) -> int | None:
        if name not in fields:
            return None
        return self.number(fields[name], _join(above, name), low, high)


def _join(above: str, name: str) -> str:
    return f"{above}.{name}" if above else name


def _quoted(name: object) -> str:
    return name if isinstance(name, str) and name.isidentifier() else repr(name)


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _yaml_number(text: str) -> int | None:
    """Return a whole number as YAML 1.1 and 1.2 write it, octals included."""
    digits = text.removeprefix("0o") if text.startswith("0o") else text
    base = 8 if len(digits) > 1 and text.startswith("0") else 10
    if len(digits) > 20 or not digits.isascii() or not digits.isdigit():
        return None
    try:
        return int(digits, base)
    except ValueError:
        return None
