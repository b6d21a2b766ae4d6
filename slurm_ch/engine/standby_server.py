# SPDX-License-Identifier: Apache-2.0
"""Start a standby image server for a step that joins a container, so that the container outlives its maker's step.

When the step that made a container ends, Slurm kills the step's image server. Every process that has the FUSE
connection open can answer requests, and the kernel ends the mount only when the last of them has closed it.
ch-squashfuse_ll keeps no state between requests, so another process of it can take over. Each standby server
waits until the earlier ones have ended (standby.c). Loaded only for joins.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys

from .. import agreement, linux
from ..errors import ChError, describe
from . import namespaces, squashfs

# This process's cgroups.
_GROUPS = "/proc/self/cgroup"

_NS_GET_PARENT = 0xB702  # _IO(NSIO, 2), linux/nsfs.h
_FUSE_DEV_IOC_CLONE = 0x8004E500  # _IOR(229, 0, uint32_t), linux/fuse.h

_STARTED, _NONE, _FAILED = range(3)


def is_needed() -> bool:
    """Whether each step has its own cgroup, in which Slurm kills all processes when the step ends."""
    with open(_GROUPS, "rb") as file:
        # In cgroup/v1 and v2 alike: .../job_7/step_0/...
        return b"/step_" in file.read()


class CantStart(ChError):
    """The container has a server of ours, but no standby server could be started."""


def start(user_fd: int) -> bool:
    """Start a standby server for the container whose commands have the user namespace `user_fd`.

    Return False if ch-squashfuse_ll doesn't serve its image; CantStart on failure.
    """
    outermost = _outermost(user_fd)
    reader, writer = os.pipe()
    # In a child: a process can't leave a user namespace again.
    child = os.fork()
    if child == 0:
        code = _FAILED
        try:
            code = _start_in(outermost)
        except Exception as error:
            os.write(writer, describe(error).encode())
        finally:
            os._exit(code)
    os.close(writer)
    os.close(outermost)
    with open(reader, "rb") as pipe:
        message = pipe.read().decode("utf-8", "replace")
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (_STARTED, _NONE):
        raise CantStart(f"can't start another server for it: {message or f'signal {-code}'}")
    return code == _STARTED


def _outermost(user_fd: int) -> int:
    """Return a descriptor of the container's outermost user namespace, in which its image is mounted.

    It is the ancestor of `user_fd` whose parent is this process's own. Commands never run in it: every
    process in it was started by a launcher.
    """
    own = os.stat("/proc/self/ns/user").st_ino
    found = os.dup(user_fd)
    while True:
        try:
            above = fcntl.ioctl(found, _NS_GET_PARENT)
        except OSError as error:
            raise CantStart("can't find the namespace that it is mounted in") from error
        if os.fstat(above).st_ino == own:
            os.close(above)
            return found
        os.close(found)
        found = above


def _start_in(namespace: int) -> int:
    """Enter the user namespace and start a standby server there; return _STARTED or _NONE. OSError, ChError."""
    namespaces.check_owner(namespace, "the container")
    where = os.fstat(namespace).st_ino
    linux.setns(namespace)
    words: list[str] = []
    images: list[int] = []
    waits: list[int] = []
    copies: list[int] = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        found = _command_line(name, where)
        if found and len(waits) < agreement.STANDBY_MAX:
            try:
                process = os.pidfd_open(int(name))
                image, device = (linux.pidfd_getfd(process, int(word.rpartition("/")[2])) for word in found[-2:])
            except OSError as error:
                if error.errno in (errno.ESRCH, errno.EBADF):
                    continue  # it has ended, or is about to
                raise
            words = found
            images.append(image)
            copies.append(device)
            waits.append(process)
    if not words:
        return _NONE
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    # Clone the device, because the other servers' descriptors are closed when they end.
    fcntl.ioctl(fuse, _FUSE_DEV_IOC_CLONE, copies[0].to_bytes(4, sys.byteorder))
    null = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
    argv = [squashfs.SERVER, "-b", *_options(words)]
    for process, device in zip(waits, copies):
        argv += ["-w", f"{process}:{device}"]
    argv += [f"/dev/fd/{images[0]}", f"/dev/fd/{fuse}"]
    os.waitpid(squashfs.spawn(argv, null, (images[0], fuse, *waits, *copies)), 0)
    return _STARTED


def _options(words: list[str]) -> list[str]:
    """Return a server's options without -w, which names the servers that it waits for."""
    found = words[2:-2]
    while "-w" in found:
        at = found.index("-w")
        del found[at : at + 2]
    return found


def _command_line(pid: str, where: int) -> list[str]:
    """Return the command line of process `pid` if it is ch-squashfuse_ll in the user namespace; [] for others."""
    try:
        if os.stat(f"/proc/{pid}/ns/user").st_ino != where:
            return []
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = os.fsdecode(file.read()).split("\0")[:-1]
    except OSError:
        return []  # no permission, or it has ended
    return words if words and words[0].endswith("/ch-squashfuse_ll") else []
