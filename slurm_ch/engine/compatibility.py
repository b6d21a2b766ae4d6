# SPDX-License-Identifier: Apache-2.0
"""What a container made with another tool's options has besides. Loaded only for those."""

from __future__ import annotations

import _stat as stat
import errno

from .. import lean_os as os
from .. import linux, log
from ..devices import names as cdinames
from ..errors import ChError, UsageError
from ..request.options import DEFAULT_WRITE_FAKE
from . import binds, places, root
from .action import Action, Build

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..request.compatibility import Compatibility
    from ..request.spec import Spec
    from .caller import Caller

# The driver of a node that has one can be talked to here.
_DRIVERS = {"nvidia.com/gpu": "/dev/nvidiactl"}


def choose_gpus(spec: Spec, compatibility: Compatibility, caller: Caller) -> None:
    """Ask for the devices that the node has specs of; a warning where it should have and hasn't."""
    for text in compatibility.notes:
        log.warning(text)
    if compatibility.gpus is None:
        return
    kind, names, label = compatibility.gpus
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


def of_host(time_zone: str, is_saved: bool) -> list[Action]:
    """Return what shows the host's name and time zone, whatever the image has there.

    Of a container that becomes an image, its own time zone must still be seen.
    """
    name, zone = ShowInstead("/etc/hostname"), ShowInstead(time_zone)
    return [name, root.BindWhereMissing(time_zone) if is_saved else zone]


class ShowInstead(binds.BindMount):
    """Bind a file of the host's over the image's, which may be a link: over the link, not over what that leads to."""

    __slots__ = ()

    def __init__(self, path: str) -> None:
        super().__init__(path, path, src_optional=True, dst_create=True, readonly=True, follow=True)

    def _open_target(self, build: Build, source: int) -> int:
        directory, _, name = self.dst.rpartition("/")
        try:
            parent = places.look_up(build, directory, True)
            try:
                return linux.openat2(parent, name, os.O_PATH | os.O_NOFOLLOW, linux.RESOLVE_BENEATH)
            finally:
                os.close(parent)
        except OSError:
            return super()._open_target(build, source)


def scratch(compatibility: Compatibility) -> list[Action]:
    """Return what mounts the memory file systems."""
    return [Scratch(place, options, label) for place, options, label in compatibility.scratch]


def lifted(compatibility: Compatibility) -> list[Action]:
    """Return what takes mounts away."""
    return [Lift(place, label) for place, label in compatibility.lifted]


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
            ours = {places.mount_id(fd) for fd in build.covers}
            if places.mount_id(target) in ours or not self._is_mounted(build):
                raise ChError(f"{self.label}: can't unmount {self.path}: nothing is mounted there")
            try:
                # By descriptor: a name would mean the host's.
                linux.umount2(f"/proc/self/fd/{target}", linux.MNT_DETACH)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._cover(target)
            os.close(target)
        except OSError as error:
            raise ChError(f"{self.label}: can't unmount {self.path}") from error

    def _is_mounted(self, build: Build) -> bool:
        directory, _, name = places.without_links(build, self.path).rpartition("/")
        above = places.look_up(build, directory, False)
        try:
            return name in places.mounted_below(above)
        finally:
            os.close(above)

    def _cover(self, target: int) -> None:
        """Have nothing seen of a mount that came with a directory of the host: the kernel keeps the two together."""
        if not stat.S_ISDIR(os.fstat(target).st_mode):
            raise ChError(f"{self.label}: can't unmount {self.path}: a file that came with a directory of the host")
        empty = places.tmpfs({"size": "4k", "mode": "0755"})
        linux.mount_setattr(empty, 0, linux.MOUNT_ATTR_RDONLY)
        linux.move_mount(empty, "", target, "", linux.MOVE_MOUNT_F_EMPTY_PATH | linux.MOVE_MOUNT_T_EMPTY_PATH)
        os.close(empty)
