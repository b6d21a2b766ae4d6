# SPDX-License-Identifier: Apache-2.0
"""Provide Slurm's commands in a container whose image has none: the part inside the container.

That is a socket, a small program, and links to the program under the commands' names.
The other end is the broker on the host. `ch-join` starts it if the plugin allows one, and
passes it this listening socket. Loaded only if the relay is on.
"""

from __future__ import annotations

import _socket
import errno
import os
import stat

from .. import agreement, linux, log
from ..errors import ChError, describe
from . import places
from .action import Action, Build

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# The commands are put into the first of these directories that the image has and PATH names.
PLACES = ("/usr/local/bin", "/usr/bin", "/bin")
# The directory next to the commands that holds the program and the socket.
DIRECTORY = ".slurm-ch"

# Calls that may wait for the broker; the kernel lowers it to its own maximum.
_BACKLOG = 4096

# The same directory in the staging tmpfs.
_STAGED_DIRECTORY = "relay/room"

_ATTRIBUTES = linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV
_ONTO = linux.MOVE_MOUNT_F_EMPTY_PATH | linux.MOVE_MOUNT_T_EMPTY_PATH


class OfferCommands(Action):
    """Make `commands` callable in the container.

    `program` is the relay's program, `path` the caller's PATH. `defaults` are variables for srun in the
    container. `label` is the user's option, or "": then a failure is only a warning. `writeable`: put the
    commands into the image's directory, which is writeable in memory, not into a cover of it.
    """

    __slots__ = ("commands", "defaults", "label", "path", "program", "writeable")

    def __init__(
        self,
        commands: Sequence[str],
        program: str,
        path: str,
        *,
        defaults: Mapping[str, str],
        label: str,
        writeable: bool,
    ) -> None:
        self.commands = commands
        self.program = program
        self.path = path
        self.defaults = defaults
        self.label = label
        self.writeable = writeable

    def describe(self) -> str:
        return f"pass {', '.join(self.commands)} on to the host"

    def apply(self, build: Build) -> None:
        try:
            self._offer(build)
        except (ChError, OSError) as error:
            if self.label:
                raise ChError(f"{self.label}: can't {self.describe()}: {describe(error)}") from None
            log.warning(f"srun and similar commands won't work in this container: {describe(error)}")

    def _offer(self, build: Build) -> None:
        places = self._directories(build)
        try:
            if not places:
                raise ChError(f"the image has none of {', '.join(PLACES)}")
            listener = self._make_relay_directory()
            for path, directory in places:
                self._show_commands(build, path, directory)
            build.relay_fd = listener.detach()
            build.records += [(agreement.PLAN_SET, f"{name}={value}") for name, value in self.defaults.items()]
            log.info(
                f"the relay is on: code in this container can run {', '.join(self.commands)} on the host as you;"
                " --ch-relay=no turns it off"
            )
        finally:
            for _, directory in places:
                os.close(directory)

    def _directories(self, build: Build) -> list[tuple[str, int]]:
        """Return the directory for the commands, and those with an srun of the image's, which has to be hidden."""
        on_path = [*_path(build, self.path).split(":"), "/bin"]
        found: list[tuple[str, int]] = []
        seen = set()
        chosen = False
        for path in PLACES:
            try:
                directory = places.look_up(build, path, True)
            except OSError:
                continue
            status = os.fstat(directory)
            wanted = path in on_path and not chosen
            if (
                stat.S_ISDIR(status.st_mode)
                and (status.st_dev, status.st_ino) not in seen
                and places.mount_id(directory) in build.mounts
                and (wanted or _has(directory, "srun"))
            ):
                seen.add((status.st_dev, status.st_ino))
                chosen = chosen or wanted
                found.append((path, directory))
            else:
                os.close(directory)
        return found if chosen else []

    def _make_relay_directory(self) -> _socket.socket:
        """Create the directory with the program and the socket in the staging tmpfs; return the listening socket."""
        os.mkdir("relay", 0o700)
        os.mkdir(_STAGED_DIRECTORY, 0o700)
        os.close(os.open(f"{_STAGED_DIRECTORY}/relay", os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o700))
        program = linux.open_tree(linux.AT_FDCWD, self.program, linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC)
        linux.mount_setattr(program, 0, _ATTRIBUTES)
        linux.move_mount(program, "", linux.AT_FDCWD, f"{_STAGED_DIRECTORY}/relay", linux.MOVE_MOUNT_F_EMPTY_PATH)
        os.close(program)
        listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
        # Before listen: other users must not be able to connect.
        listener.bind(f"{_STAGED_DIRECTORY}/socket")
        os.chmod(f"{_STAGED_DIRECTORY}/socket", 0o600)
        listener.listen(_BACKLOG)
        return listener

    def _show_commands(self, build: Build, path: str, directory: int) -> None:
        """Show the commands in `directory`: in the directory itself if it is writeable, else in a cover of it."""
        # Not over what the user has bound there, which may be their own Slurm.
        bound = places.mounted_below(directory)
        names = [name for name in self.commands if name not in bound]
        if self.writeable:
            _write_links(places.writeable(build, os.dup(directory), path), names)
        else:
            layer = f"relay/{build.overmounts}"
            build.overmounts += 1
            os.mkdir(layer, 0o755)
            _write_links(os.open(layer, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), names)
            _cover(build, directory, layer)
        room = linux.open_tree(
            linux.AT_FDCWD, _STAGED_DIRECTORY, linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC | linux.AT_RECURSIVE
        )
        linux.mount_setattr(room, 0, _ATTRIBUTES)
        point = places.look_up(build, f"{path}/{DIRECTORY}", True)
        linux.move_mount(room, "", point, "", _ONTO)
        os.close(point)
        os.close(room)


def _path(build: Build, callers: str) -> str:
    """Return the PATH that commands will have: the one of the last rule for it, else the caller's."""
    kinds = (agreement.PLAN_SET, agreement.PLAN_SET_ANYWHERE, agreement.PLAN_SET_ITEMS)
    for kind, text in reversed(build.records):
        if kind in kinds and text.startswith("PATH="):
            return f"{text[5:]}:{callers}" if "$" in text else text[5:]
    return callers


def _has(directory: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return False
    return True


def _write_links(directory: int, names: Sequence[str]) -> None:
    """Put the links and the mount point for DIRECTORY into `directory`, and close it. Existing files are replaced."""
    try:
        for name in names:
            if _has(directory, name):
                os.unlink(name, dir_fd=directory)
            os.symlink(f"{DIRECTORY}/relay", name, dir_fd=directory)
        if _has(directory, DIRECTORY) and not stat.S_ISDIR(
            os.stat(DIRECTORY, dir_fd=directory, follow_symlinks=False).st_mode
        ):
            os.unlink(DIRECTORY, dir_fd=directory)
        if not _has(directory, DIRECTORY):
            os.mkdir(DIRECTORY, 0o755, dir_fd=directory)
    finally:
        os.close(directory)


def _cover(build: Build, directory: int, layer: str) -> None:
    """Overlay `directory` with `layer`, read-only: changes there could not be kept."""
    layers = ("lowerdir", f"{layer}:/proc/self/fd/{directory}")
    cover = linux.new_filesystem("overlay", (("source", "slurm_ch"), layers), ("userxattr",), _ATTRIBUTES)
    places.lay_over(build, directory, cover)
    os.close(cover)
