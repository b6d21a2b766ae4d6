# SPDX-License-Identifier: Apache-2.0
"""Find the spec files of the Container Device Interface on this machine, and the requested devices in them.

Only spec files are read. If several directories have the same device, the last directory counts.
"""

from __future__ import annotations

import os
import stat

from ..errors import ChError, UsageError
from . import names as cdinames
from . import reader
from .edits import Injection, apply
from .records import Malformed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .records import Document

# Far more than any vendor's spec has. The limit is for files that are no specs.
_MAX_BYTES = 16 << 20

# Variables with a value for each task: a spec must not set them to the same value for all.
_TASKS_OWN = (
    "SLURM_", "PMI_", "PMIX_", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES",
    "ZE_AFFINITY_MASK", "GPU_DEVICE_ORDINAL",
)  # fmt: skip


directories = cdinames.directories


def find(
    requests: Sequence[tuple[str, str]], places: Sequence[str], cwd: str, environment: Mapping[str, str]
) -> Injection:
    """Return the merged edits of the requested devices.

    `requests` are pairs of a device and the label of its option, `places` the directories of specs. Relative paths
    start at `cwd`; `environment` is the tasks' own. ChError if a needed spec is malformed, UsageError if there is no
    such device.
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
        env = apply(injection, chosen, applied)
        kept = {word for word in env if word.startswith(_TASKS_OWN) and word.partition("=")[0] in environment}
        for word in sorted(kept):
            injection.remark(
                f"{text}: {word.partition('=')[0]} is each task's own, not set to {word.partition('=')[2]}"
            )
        injection.env.append([word for word in env if word not in kept])
    return injection


def has(kind: str, places: Sequence[str], cwd: str) -> bool:
    """Whether there are devices of a kind; ChError if their spec is malformed."""
    return _Library({kind}, places, Injection()).read(cwd).knows(kind)


def check_files(requests: Sequence[tuple[str, str]]) -> None:
    """Raise UsageError if a spec file that is requested by its absolute path exists on this host and is malformed."""
    for text, label in requests:
        if text.startswith("/"):
            try:
                _read_named(text, text, label)
            except UsageError as error:
                if not isinstance(error.__cause__, OSError):
                    raise


def _read_named(path: str, text: str, label: str) -> Document:
    try:
        return reader.parse(_read(path), path)
    except Malformed as error:
        raise UsageError(f"{label}: {error}") from None
    except OSError as error:
        raise UsageError(f"{label}={text}: can't read the device spec") from error


def _all_names(devices: Mapping[str, object]) -> list[str]:
    """Return the names that stand for all devices: "all" if a device has that name, or else every name."""
    return ["all"] if "all" in devices else list(devices)


def _read(path: str) -> bytes:
    # O_NONBLOCK: the path may be of a FIFO that nobody writes to.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Malformed(f"{path}: not a regular file")
        with open(fd, "rb", closefd=False) as file:
            data = file.read(_MAX_BYTES + 1)
    finally:
        os.close(fd)
    if len(data) > _MAX_BYTES:
        raise Malformed(f"{path}: larger than {_MAX_BYTES >> 20} MiB")
    return data


class _Library:
    """The specs in a list of directories, for the given kinds of devices or for every kind."""

    __slots__ = ("_found", "_injection", "_kinds", "_places", "_skipped", "_twice")

    def __init__(self, kinds: set[str], places: Sequence[str], injection: Injection) -> None:
        self._kinds = kinds
        self._places = places
        self._injection = injection
        self._found: dict[str, dict[str, Document]] = {}  # by kind, then name
        self._twice: dict[tuple[str, str], str] = {}
        self._skipped: list[str] = []

    def read(self, cwd: str) -> _Library:
        for place in self._places:
            self._add(os.path.join(cwd, place))
        return self

    def knows(self, kind: str) -> bool:
        """Whether there are devices of a kind."""
        return kind in self._found

    def _add(self, place: str) -> None:
        here: dict[tuple[str, str], Document] = {}
        for path in _spec_files(place, self._injection):
            document = self._parse(path)
            if document is None or not self._kinds & {document.kind, cdinames.EVERY}:
                continue
            for name in document.devices:
                key = (document.kind, name)
                if key in here:
                    self._twice[key] = f"{here[key].file} and {document.file}"
                else:
                    # This directory replaces earlier ones, so a conflict there doesn't matter.
                    self._twice.pop(key, None)
                here[key] = document
                self._found.setdefault(document.kind, {})[name] = document

    def _parse(self, path: str) -> Document | None:
        try:
            return reader.parse(_read(path), path)
        except Malformed as error:
            if error.kind in self._kinds:
                raise
            if error.kind is None or cdinames.EVERY in self._kinds:
                # The spec may be of a requested kind.
                self._skip(f"device spec skipped: {error}")
            else:
                self._injection.note(f"device spec skipped: {error}")
        except OSError as error:
            self._skip(f"device spec skipped: {path}: {error.strerror}")
        return None

    def _skip(self, text: str) -> None:
        self._skipped.append(text)
        self._injection.remark(text)

    def every(self) -> list[tuple[Document, str]]:
        """Return all devices of all kinds. It is not an error if there are none."""
        if not self._found:
            self._injection.note(f"no devices in {':'.join(self._places)}")
        return [each for kind in self._found for each in self._documents(kind, _all_names(self._found[kind]))]

    def choose(self, text: str, label: str) -> list[tuple[Document, str]]:
        """Return the devices that `text` names, each with its document; UsageError if there are none."""
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

    def _documents(self, kind: str, names: Sequence[str]) -> list[tuple[Document, str]]:
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
