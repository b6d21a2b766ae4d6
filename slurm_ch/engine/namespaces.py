# SPDX-License-Identifier: Apache-2.0
"""Make and join user and mount namespaces."""

from __future__ import annotations

import errno
import fcntl
import sys

from .. import agreement, linux, log
from .. import lean_os as os
from ..errors import ChError
from .action import Action, Build

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


_NS_GET_OWNER_UID = 0xB704  # _IO(NSIO, 4), linux/nsfs.h

_HINT = (
    " (are unprivileged user namespaces allowed here? see user.max_user_namespaces,"
    " kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)"
)


class NewNamespaces(Action):
    """Enter a new user namespace, with one user id and one group id mapped, and a new mount namespace.

    `more` are further kinds of namespaces: net, ipc, uts. `last` marks the commands' namespaces. From then on,
    root in the container could trace this process, which holds descriptors of the host; so it is made undumpable.
    """

    __slots__ = ("_loopback", "inside", "last", "more", "outside")

    def __init__(
        self, outside: tuple[int, int], inside: tuple[int, int], last: bool = False, more: Sequence[str] = ()
    ) -> None:
        self.outside = outside
        self.inside = inside
        self.last = last
        self.more = more
        self._loopback: Callable[[], None] | None = None
        if "net" in more:
            # Imported here: inside the container, no module can be found.
            from . import loopback

            self._loopback = loopback.bring_up

    def describe(self) -> str:
        (uid_out, gid_out), (uid_in, gid_in) = self.outside, self.inside
        kinds = ", ".join(("user", *self.more))
        return f"new {kinds} and mount namespaces: {uid_out}:{gid_out} becomes {uid_in}:{gid_in}"

    def apply(self, build: Build) -> None:
        try:
            linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNS | _flags(self.more))
        except OSError as error:
            hint = _HINT if error.errno in (errno.EPERM, errno.ENOSPC, errno.EINVAL) else ""
            raise ChError(f"can't create user and mount namespaces{hint}") from error
        if self._loopback is not None:
            self._loopback()
        (uid_out, gid_out), (uid_in, gid_in) = self.outside, self.inside
        if build.proc_fd < 0:
            # Opened once: the container's /proc will be read-only.
            build.proc_fd = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        _write_map(build.proc_fd, "uid_map", f"{uid_in} {uid_out} 1\n")
        # The kernel wants this before an unprivileged gid_map.
        _write_map(build.proc_fd, "setgroups", "deny\n")
        _write_map(build.proc_fd, "gid_map", f"{gid_in} {gid_out} 1\n")
        if self.last:
            # After the maps: those of an undumpable process belong to root.
            linux.prctl_dumpable(False)
            os.close(build.proc_fd)
            build.proc_fd = -1


class ForbidNesting(Action):
    """Limit the user namespaces below this one to one, that of the commands: they can't make others."""

    __slots__ = ()

    def describe(self) -> str:
        return "allow no user namespaces in the container"

    def apply(self, build: Build) -> None:
        del build
        try:
            # The limit is per user namespace, and root in a namespace below can't change it.
            fd = os.open("/proc/sys/user/max_user_namespaces", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, b"1\n")
            finally:
                os.close(fd)
        except OSError as error:
            # /proc is read-only, as where this node itself is a container.
            log.info(f"can't forbid user namespaces in the container: {error.strerror}")


def _write_map(proc_fd: int, name: str, text: str) -> None:
    try:
        fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc_fd)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise ChError(f"can't write /proc/self/{name}") from error


def _flags(kinds: Sequence[str]) -> int:
    flags = 0
    for kind in kinds:
        flags |= {"net": linux.CLONE_NEWNET, "ipc": linux.CLONE_NEWIPC, "uts": linux.CLONE_NEWUTS}[kind]
    return flags


def open_more(kinds: Sequence[str]) -> list[int]:
    """Return descriptors of this process's namespaces of the given kinds."""
    return [_open("self", kind) for kind in kinds]


def open_own() -> tuple[int, int]:
    """Return descriptors of this process's user and mount namespaces."""
    return _open("self", "user"), _open("self", "mnt")


def _open(pid: int | str, kind: str) -> int:
    path = f"/proc/{pid}/ns/{kind}"
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise ChError(f"join: no process {pid}: {path}") from error
    except OSError as error:
        raise ChError(f"join: can't open {path}") from error


def check_owner(user_fd: int, whose: str) -> None:
    """Raise ChError if another user made the user namespace.

    The kernel lets root enter any of them, and its owner could then control root's process.
    """
    try:
        answer = fcntl.ioctl(user_fd, _NS_GET_OWNER_UID, bytes(4))
    except OSError as error:
        raise ChError(f"can't find out who owns the namespaces of {whose}") from error
    owner = int.from_bytes(answer, sys.byteorder)
    if owner != os.geteuid():
        raise ChError(f"can't join {whose}: its namespaces belong to uid {owner}")


def open_at(proc_fd: int, pid: int) -> tuple[int, int]:
    """Return descriptors of a process's user and mount namespaces; `proc_fd` is its directory of /proc."""
    fds = []
    for kind in ("user", "mnt"):
        try:
            fds.append(os.open(f"ns/{kind}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc_fd))
        except OSError as error:
            raise ChError(f"join: can't open /proc/{pid}/ns/{kind}") from error
    return fds[0], fds[1]


def enter(user_fd: int, mount_fd: int, whose: str, further: Mapping[str, int] | None = None) -> None:
    """Enter a user namespace, then `further` ones, then a mount namespace.

    ChError names the namespace that can't be entered, and `whose` it is. This process becomes undumpable.
    """
    check_owner(user_fd, whose)
    # Between the two calls, this process still sees the host's files, and root in the container could trace it.
    linux.prctl_dumpable(False)
    for kind, fd in (("user", user_fd), *(further or {}).items(), ("mnt", mount_fd)):
        for left in range(agreement.SETNS_TRIES - 1, -1, -1):
            try:
                linux.setns(fd)
                break
            except OSError as error:
                if error.errno == errno.EINVAL and left:
                    log.warning(f"can't join {kind} namespace of {whose}; trying again")
                    continue
                raise ChError(f"can't join {kind} namespace of {whose}") from error


def enter_pid(pid: int) -> tuple[int, int]:
    """Enter the user and mount namespaces of process `pid`; return descriptors of them."""
    user_fd, mount_fd = _open(pid, "user"), _open(pid, "mnt")
    enter(user_fd, mount_fd, f"pid {pid}")
    return user_fd, mount_fd
