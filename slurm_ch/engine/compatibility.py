# SPDX-License-Identifier: Apache-2.0
"""What a container has in addition if it was requested by pyxis' options. Loaded only for those."""

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

# The driver's device file for each kind of device: if it exists, the node should have CDI specs of that kind.
_DRIVERS = {"nvidia.com/gpu": "/dev/nvidiactl"}


def choose_gpus(spec: Spec, compatibility: Compatibility, caller: Caller) -> None:
    """Add the node's GPUs to `spec`; a warning if the node has a driver, or the user asked, but there are no specs."""
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
    """Whether the node has specs of this kind of device."""
    # Most nodes have no specs at all: they need not load what reads specs.
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


def host_name_and_time_zone(time_zone: str, is_saved: bool) -> list[Action]:
    """Return the binds of the host's /etc/hostname and time zone over the image's files.

    A container that will be saved as an image keeps its own time zone.
    """
    name, zone = BindOverLink("/etc/hostname"), BindOverLink(time_zone)
    return [name, root.BindWhereMissing(time_zone) if is_saved else zone]


class BindOverLink(binds.BindMount):
    """Bind a file of the host over the image's. If that is a symbolic link, mount over the link, not its target."""

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


def tmpfs_mounts(compatibility: Compatibility) -> list[Action]:
    """Return the actions that mount the requested tmpfs file systems."""
    return [MountTmpfs(place, options, label) for place, options, label in compatibility.tmpfs_mounts]


def unmounted(compatibility: Compatibility) -> list[Action]:
    """Return the actions that unmount what the user wants unmounted."""
    return [Unmount(place, label) for place, label in compatibility.unmounted]


class MountTmpfs(Action):
    """Mount a new tmpfs."""

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


class Unmount(Action):
    """Unmount what is mounted at a path of the new root, as umount2(2) with MNT_DETACH does."""

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
                # By descriptor: the path would mean the host's directory.
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
        """Hide a mount by an empty, read-only tmpfs: the kernel unmounts nothing that came with a recursive bind."""
        if not stat.S_ISDIR(os.fstat(target).st_mode):
            raise ChError(f"{self.label}: can't unmount {self.path}: a file that came with a directory of the host")
        empty = places.tmpfs({"size": "4k", "mode": "0755"})
        linux.mount_setattr(empty, 0, linux.MOUNT_ATTR_RDONLY)
        linux.move_mount(empty, "", target, "", linux.MOVE_MOUNT_F_EMPTY_PATH | linux.MOVE_MOUNT_T_EMPTY_PATH)
        os.close(empty)
