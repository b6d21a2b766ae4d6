# SPDX-License-Identifier: Apache-2.0
"""A server that waits beside another step's for an image that both could serve: the container outlives that step.

The kernel hands each request to whoever reads it first, of all who have the mount's connection open, and ends the
mount when the last of them has closed it. ch-squashfuse_ll remembers nothing of one request in the next: so any
process of it can go on where another has ended. Who comes later waits (standby.c), so that nobody notices
the end of a step that has joined. Loaded for joins only.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys

from .. import agreement, linux
from ..errors import ChError, describe
from . import namespaces, squashfs

# Which groups a process is in.
_GROUPS = "/proc/self/cgroup"

_NS_GET_PARENT = 0xB702  # _IO(NSIO, 2), linux/nsfs.h
_FUSE_DEV_IOC_CLONE = 0x8004E500  # _IOR(229, 0, uint32_t), linux/fuse.h

_STARTED, _NONE, _FAILED = range(3)


def is_needed() -> bool:
    """Whether a step has a group of its own, in which Slurm kills all that the tasks leave."""
    with open(_GROUPS) as file:
        # By cgroup/v1 and v2: .../job_7/step_0/...
        return "/step_" in file.read()


class CantStart(ChError):
    """There is a server, and no other can wait beside it."""


def start(user_fd: int) -> bool:
    """Start one for the container whose commands have that user namespace; False if there is no server of ours.

    CantStart if that fails.
    """
    outermost = _outermost(user_fd)
    reader, writer = os.pipe()
    # Who enters a user namespace doesn't come back.
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
        said = pipe.read().decode("utf-8", "replace")
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (_STARTED, _NONE):
        raise CantStart(f"can't start another server for it: {said or f'signal {-code}'}")
    return code == _STARTED


def _outermost(user_fd: int) -> int:
    """Return a descriptor of the user namespace next to ours that `user_fd` is in: the image is mounted in it.

    No command is ever in it, so whatever is there has been started by a launcher.
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
    """Enter the namespace and start one; OSError or ChError if that fails."""
    namespaces.check_owner(namespace, "the container")
    where = os.fstat(namespace).st_ino
    linux.setns(namespace)
    words: list[str] = []
    images: list[int] = []
    waits: list[int] = []
    copies: list[int] = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        found = _words(name, where)
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
    # A device of its own, for the others' end with them.
    fcntl.ioctl(fuse, _FUSE_DEV_IOC_CLONE, copies[0].to_bytes(4, sys.byteorder))
    null = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
    argv = [squashfs.SERVER, "-b", *_options(words)]
    for process, device in zip(waits, copies):
        argv += ["-w", f"{process}:{device}"]
    argv += [f"/dev/fd/{images[0]}", f"/dev/fd/{fuse}"]
    os.waitpid(squashfs.spawn(argv, null, (images[0], fuse, *waits, *copies)), 0)
    return _STARTED


def _options(words: list[str]) -> list[str]:
    """Return a server's options but for whom it waits for itself."""
    found = words[2:-2]
    while "-w" in found:
        at = found.index("-w")
        del found[at : at + 2]
    return found


def _words(pid: str, where: int) -> list[str]:
    """Return how a server of ours in that user namespace was started; nothing for any other process."""
    try:
        if os.stat(f"/proc/{pid}/ns/user").st_ino != where:
            return []
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = os.fsdecode(file.read()).split("\0")[:-1]
    except OSError:
        return []  # not ours to look at, or it has ended
    return words if words and words[0].endswith("/ch-squashfuse_ll") else []
