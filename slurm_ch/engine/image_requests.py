# SPDX-License-Identifier: Apache-2.0
"""What an image itself requests: no GPUs, the mounts of enroot's fstab, a script to be sourced.

Loaded only for pyxis' options, whose users expect it.
"""

from __future__ import annotations

import _stat as stat

from .. import lean_os as os
from .. import log
from ..agreement import IMAGE_ENVIRONMENT0
from . import places
from .action import Action, Build, MoreActions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..devices.edits import Injection
    from ..request.compatibility import Compatibility
    from ..request.spec import Spec
    from .caller import Caller

_NO_DEVICES = ("", "none", "void")
# More than any image's variables need.
_ENVIRONMENT_BYTES = 1 << 20


def actions(
    extra: MoreActions, spec: Spec, compatibility: Compatibility, injection: Injection | None, caller: Caller
) -> MoreActions:
    """Return `extra` with the actions for the image's requests; the device actions depend on whether it wants GPUs."""
    kind = compatibility.gpus[0] if compatibility.gpus is not None else ""
    if injection is not None and all(asked_by == kind for _, asked_by in spec.devices):
        # The user didn't ask for GPUs: they are shown because the node has them.
        gpu_request = ImageGpuRequest(injection)
        for part in (extra.before_binds, extra.in_tree, extra.inside):
            part[:] = [IfGpusWanted(gpu_request, one) for one in part]
    start = RunStartFile(caller.environment, compatibility, spec.cd is None)
    extra.in_tree.append(ApplyEnrootFiles(start))
    if compatibility.entrypoint is None:
        extra.inside.append(start)
    else:
        # enroot's entrypoint sources the file by itself.
        from . import ch_join, entrypoint

        label, speaks = compatibility.entrypoint
        label += ": the image's entrypoint"
        run = entrypoint.RunEntrypoint(label, caller.environment, speaks=speaks, directory=spec.cd is None)
        extra.before_binds.append(ch_join.OpenChJoin(run, "the image's entrypoint"))
        extra.inside.append(run)
    return extra


class ImageGpuRequest:
    """Whether the image wants GPUs: all do, except one whose NVIDIA_VISIBLE_DEVICES names none."""

    __slots__ = ("_injection", "_wanted")

    def __init__(self, injection: Injection) -> None:
        self._injection = injection
        self._wanted: bool | None = None

    def image_wants_gpus(self, build: Build) -> bool:
        """Return whether the image wants GPUs. If not, the devices' variables are dropped too."""
        if self._wanted is None:
            self._wanted = _value_in_image(build, "NVIDIA_VISIBLE_DEVICES") not in _NO_DEVICES
            if not self._wanted:
                log.info("the image's NVIDIA_VISIBLE_DEVICES asks for no devices")
                self._injection.env[:] = [[] for _ in self._injection.env]
        return self._wanted


def _value_in_image(build: Build, name: str) -> str | None:
    found = None
    for path, separator in ((IMAGE_ENVIRONMENT0, b"\0"), ("/etc/environment", b"\n")):
        try:
            fd = places.open_file(build, path)
        except OSError:
            continue
        text = os.read(fd, _ENVIRONMENT_BYTES) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
        os.close(fd)
        for line in text.split(separator):
            if line.startswith(name.encode() + b"="):
                found = os.fsdecode(line[len(name) + 1 :])
    return found


class IfGpusWanted(Action):
    """Apply an action for the GPUs if the image wants them."""

    __slots__ = ("action", "gpu_request")

    def __init__(self, gpu_request: ImageGpuRequest, action: Action) -> None:
        self.gpu_request = gpu_request
        self.action = action

    def describe(self) -> str:
        return self.action.describe()

    def apply(self, build: Build) -> None:
        if build.root_fd < 0 or self.gpu_request.image_wants_gpus(build):
            self.action.apply(build)


class RunStartFile(Action):
    """Source enroot's /etc/rc.local, if it isn't empty."""

    __slots__ = ("directory", "env", "run", "speaks")

    def __init__(self, env: Mapping[str, str], compatibility: Compatibility, directory: bool) -> None:
        self.env = env
        self.directory = directory  # whether tasks start in the directory that it changes to
        self.speaks = compatibility.speaks  # whether the user sees its output
        self.run: Action | None = None

    def describe(self) -> str:
        return "source /etc/rc.local, if enroot's image has one"

    def apply(self, build: Build) -> None:
        if self.run is not None:
            self.run.apply(build)


class ApplyEnrootFiles(Action):
    """Mount the entries of enroot's /etc/fstab, and prepare /etc/rc.local for `start`."""

    __slots__ = ("start",)

    def __init__(self, start: RunStartFile) -> None:
        self.start = start

    def describe(self) -> str:
        return "mount what /etc/fstab says, if the image is enroot's"

    def apply(self, build: Build) -> None:
        mounts, starts = (_has_text(build, path) for path in ("/etc/fstab", "/etc/rc.local"))
        if not mounts and not starts:
            return
        from . import ch_join, enroot_files

        if not enroot_files.is_image(build):
            return
        if mounts:
            enroot_files.mount(build)
        if starts:
            run = enroot_files.start(self.start.env, speaks=self.start.speaks, directory=self.start.directory)
            ch_join.OpenChJoin(run, "the image's entrypoint").apply(build)
            self.start.run = run


def _has_text(build: Build, path: str) -> bool:
    try:
        fd = places.look_up(build, path, True)
    except OSError:
        return False
    size = os.fstat(fd).st_size
    os.close(fd)
    return size > 0
