# SPDX-License-Identifier: Apache-2.0
"""What a container has in another tool's manner. Loaded only for those."""

from __future__ import annotations

import os

from .. import linux, log
from ..devices import names as cdinames
from ..errors import ChError, UsageError
from ..request.options import DEFAULT_WRITE_FAKE
from . import places
from .action import Action, Build

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..request.manner import Manner
    from ..request.spec import Spec
    from .caller import Caller

# The driver of a node that has one can be talked to here.
_DRIVERS = {"nvidia.com/gpu": "/dev/nvidiactl"}


def choose_gpus(spec: Spec, manner: Manner, caller: Caller) -> None:
    """Ask for the devices that the node has specs of; a warning where it should have and hasn't."""
    if manner.gpus is None:
        return
    kind, names, label = manner.gpus
    directories = cdinames.directories(spec.cdi_dirs, caller.environment)
    if _has(kind, directories, caller.cwd):
        asked = [(f"{kind}={name}", label or kind) for name in names]
        spec.devices += asked
        spec.env_rules += [("device", text) for text, _ in asked]
        if spec.write_fake is None and not (spec.write or spec.overlay) and "write-fake" not in spec.labels:
            spec.write_fake = DEFAULT_WRITE_FAKE
    elif label or os.path.exists(_DRIVERS[kind]):
        log.warning(
            f"{label or _DRIVERS[kind]}: no specs of {kind} in {':'.join(directories)}, so the container has no"
            " libraries of the driver: `nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml` makes them"
        )


def _has(kind: str, directories: Sequence[str], cwd: str) -> bool:
    """Whether there are devices of a kind; most nodes have no specs at all, and need no reader of them."""
    for directory in directories:
        try:
            if os.listdir(os.path.join(cwd, directory)):
                break
        except OSError:
            pass
    else:
        return False
    from ..devices import library

    return library.has(kind, directories, cwd)


def scratch(manner: Manner) -> list[Action]:
    """Return what mounts the memory file systems."""
    return [Scratch(place, options, label) for place, options, label in manner.scratch]


def lifted(manner: Manner) -> list[Action]:
    """Return what takes mounts away."""
    return [Lift(place, label) for place, label in manner.lifted]


class Scratch(Action):
    """Mount a fresh memory file system."""

    __slots__ = ("label", "options", "path")

    def __init__(self, path: str, options: Mapping[str, str], label: str) -> None:
        self.path = path
        self.options = options
        self.label = label

    def describe(self) -> str:
        words = "".join(f" {name}={value}" for name, value in self.options.items())
        return f"mount a fresh tmpfs on {self.path}{words}"

    def apply(self, build: Build) -> None:
        try:
            try:
                target = places.look_up(build, self.path, False)
            except FileNotFoundError:
                target = places.create(build, self.path, True, False)
            if places.same_place(target, build.root_fd):
                raise UsageError(f"{self.label}: that is the container's root")
            fresh = places.tmpfs({"mode": "1777", **self.options})
            linux.move_mount(fresh, "", target, "", linux.MOVE_MOUNT_F_EMPTY_PATH | linux.MOVE_MOUNT_T_EMPTY_PATH)
        except OSError as error:
            raise ChError(f"{self.label}: can't mount a tmpfs") from error
        os.close(target)
        build.mounts.add(places.mount_id(fresh))
        os.close(fresh)


class Lift(Action):
    """Unmount what is at a place of the new root, as umount2(2) with MNT_DETACH does."""

    __slots__ = ("label", "path")

    def __init__(self, path: str, label: str) -> None:
        self.path = path
        self.label = label

    def describe(self) -> str:
        return f"unmount {self.path}"

    def apply(self, build: Build) -> None:
        try:
            target = places.look_up(build, self.path, False)
            if places.same_place(target, build.root_fd):
                raise UsageError(f"{self.label}: that is the container's root")
            # By descriptor: a name would mean the host's.
            linux.umount2(f"/proc/self/fd/{target}", linux.MNT_DETACH)
            os.close(target)
        except OSError as error:
            why = "no mount of its own: what comes with a directory of the host goes with it"
            raise ChError(f"{self.label}: can't unmount {self.path}: {why}") from error
