# SPDX-License-Identifier: Apache-2.0
"""Parse a spec file of the Container Device Interface: text in, values out.

https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md

As the specification requires, a spec is malformed if it has an unknown field, or a field
that is newer than the version in the spec. Loaded only if devices are requested.
"""

from __future__ import annotations

import os

from . import names as cdinames
from .records import Document, Edits, HookProgram, Malformed, Mount, Node
from .text import load_json, load_yaml

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# All versions of the specification; the third number never matters.
VERSIONS = ((0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (0, 6), (0, 7), (0, 8), (1, 0), (1, 1))

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


def parse(data: bytes, file: str) -> Document:
    """Parse `data` from `file`: JSON, or YAML by the file's name. Malformed names the key that is wrong."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise Malformed(f"{file}: not UTF-8 at byte {error.start}") from None
    is_yaml = not file.endswith(".json")
    tree = load_yaml(text, file) if is_yaml else load_json(text, file)
    kind = tree.get("kind") if isinstance(tree, dict) else None
    try:
        return _Reader(file, is_yaml).document(tree)
    except Malformed as error:
        error.kind = kind if isinstance(kind, str) else None
        raise


class _Reader:
    """Converts a tree of values to records, and raises Malformed where it is wrong.

    A `key` is the place of a value, like `devices[0].containerEdits.env[1]`.
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

    def hook(self, item: object, key: str) -> HookProgram:
        fields = self.fields(item, key, _HOOK_FIELDS)
        name = self.string(fields, "hookName", key)
        if name not in _HOOK_NAMES:
            raise self.wrong(f"{key}.hookName", f"not a hook's name: {name}")
        path = self.path(fields, "path", key)
        args = tuple(self.text(value, where) for where, value in self.items(fields, "args", key))
        for where, value in self.items(fields, "env", key):
            self.assignment(value, where)
        return HookProgram(self.at(key), name, path, args, self.optional_number(fields, "timeout", key, 1, 2**31))

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
        """Return the fields of an object that have a value; Malformed if one is not in `known`."""
        if not isinstance(value, dict):
            raise self.wrong(key, "not an object")
        for name in value:
            if name not in known:
                raise self.wrong(_join(key, _quoted(name)), "unknown field")
        return {name: item for name, item in value.items() if item is not None and item != ""}

    def items(self, fields: dict[str, object], name: str, above: str) -> Iterator[tuple[str, object]]:
        """Yield each item of a list with its key; the list may be missing."""
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
    """Parse a whole number of YAML 1.1 or 1.2, which may be octal; None if it isn't one."""
    digits = text.removeprefix("0o") if text.startswith("0o") else text
    base = 8 if len(digits) > 1 and text.startswith("0") else 10
    if len(digits) > 20 or not digits.isascii() or not digits.isdigit():
        return None
    try:
        return int(digits, base)
    except ValueError:
        return None
