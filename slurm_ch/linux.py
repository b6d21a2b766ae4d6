# SPDX-License-Identifier: Apache-2.0
"""System calls that Python lacks, under the kernel's names.

Each wrapper raises OSError with the errno and the paths involved. Calls that older
versions of glibc lack go through syscall(2): numbers from 424 (pidfd_send_signal) on
are the same on all architectures.
"""

from __future__ import annotations

import _ctypes
import errno
import sys

from . import lean_os as os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000

MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 0x2

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
OPEN_TREE_CLONE = 0x1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
FSOPEN_CLOEXEC = 0x1
FSMOUNT_CLOEXEC = 0x1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10
CLOSE_RANGE_CLOEXEC = 0x4

_KEYCTL_JOIN_SESSION_KEYRING = 1

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_SECUREBITS = 28
_PR_SET_NO_NEW_PRIVS = 38
_SECBIT_NOROOT = 0x1
_SECBIT_NOROOT_LOCKED = 0x2

_SOL_SOCKET = 1
_SCM_RIGHTS = 1

_NR_OPEN_TREE = 428
_NR_MOVE_MOUNT = 429
_NR_FSOPEN = 430
_NR_FSCONFIG = 431
_NR_FSMOUNT = 432
_NR_CLOSE_RANGE = 436
_NR_OPENAT2 = 437
_NR_PIDFD_GETFD = 438
_NR_MOUNT_SETATTR = 442
_NR_KEYCTL = {"x86_64": 250, "aarch64": 219, "riscv64": 219, "ppc64le": 271}

# A bit for each CPU: more than any kernel is built for.
_CPU_BYTES = 2048

# Each try takes microseconds.
_OPENAT2_TRIES = 1000


# The module behind ctypes is used directly: loading the package takes longer than
# all the calls together.
class _Int(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "i"


class _UInt(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "I"


class _Long(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "l"


class _ULong(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "L"


class _Pointer(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "z"


class _Function(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = _Int


class _Call(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = _Long


_libc = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]
_syscall = _Call(_ctypes.dlsym(_libc, "syscall"))
_unshare = _Function(_ctypes.dlsym(_libc, "unshare"))
_sched_setaffinity = _Function(_ctypes.dlsym(_libc, "sched_setaffinity"))
_setns = _Function(_ctypes.dlsym(_libc, "setns"))
_mount = _Function(_ctypes.dlsym(_libc, "mount"))
_umount2 = _Function(_ctypes.dlsym(_libc, "umount2"))
_pivot_root = _Function(_ctypes.dlsym(_libc, "pivot_root"))
_prctl = _Function(_ctypes.dlsym(_libc, "prctl"))
_sendmsg = _Call(_ctypes.dlsym(_libc, "sendmsg"))


def _words(*values: int) -> bytes:
    """Return the values as a struct of 64-bit members."""
    return b"".join(value.to_bytes(8, sys.byteorder) for value in values)


def _bytes(path: str | bytes | None) -> bytes | None:
    return os.fsencode(path) if isinstance(path, str) else path


def _fail(source: object = None, target: object = None) -> OSError:
    number = _ctypes.get_errno()
    return OSError(number, os.strerror(number), source, None, target)


def unshare(flags: int) -> None:
    """Move this process into new namespaces, as unshare(2)."""
    if _unshare(flags) != 0:
        raise _fail()


def setns(fd: int, nstype: int = 0) -> None:
    """Enter the namespace that `fd` refers to, as setns(2)."""
    if _setns(fd, nstype) != 0:
        raise _fail()


def mount(source: str | None, target: str, fstype: str | None, flags: int, data: str | None) -> None:
    """Mount, bind, move or remount, as mount(2)."""
    done = _mount(_bytes(source), _bytes(target), _bytes(fstype), _ULong(flags), _bytes(data))
    if done != 0:
        raise _fail(source or fstype, target)


def umount2(target: str, flags: int) -> None:
    """Unmount, as umount2(2)."""
    if _umount2(_bytes(target), flags) != 0:
        raise _fail(target)


def pivot_root(new_root: str, put_old: str) -> None:
    """Swap the root mount, as pivot_root(2)."""
    if _pivot_root(_bytes(new_root), _bytes(put_old)) != 0:
        raise _fail(new_root, put_old)


def sched_setaffinity_any() -> None:
    """Let this process run on every CPU that its cpuset allows, as sched_setaffinity(2)."""
    if _sched_setaffinity(0, _ULong(_CPU_BYTES), b"\xff" * _CPU_BYTES) != 0:
        raise _fail()


def prctl_no_new_privs() -> None:
    """Keep this process and its children from gaining privileges by exec, as prctl(2)."""
    if _prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise _fail()


def prctl_dumpable(yes: bool) -> None:
    """Allow or forbid that other processes trace this one and open its descriptors, until it execs, as prctl(2)."""
    if _prctl(_PR_SET_DUMPABLE, int(yes), 0, 0, 0) != 0:
        raise _fail()


def prctl_root_is_nobody() -> None:
    """Keep uid 0 from getting capabilities by exec, as prctl(2)."""
    if _prctl(_PR_SET_SECUREBITS, _SECBIT_NOROOT | _SECBIT_NOROOT_LOCKED, 0, 0, 0) != 0:
        raise _fail()


def prctl_parent_death_signal(number: int) -> None:
    """Make the kernel send signal `number` to this process when its parent dies, as prctl(2)."""
    if _prctl(_PR_SET_PDEATHSIG, _ULong(number), 0, 0, 0) != 0:
        raise _fail()


def sendmsg(fd: int, data: bytes, descriptors: Iterable[int]) -> None:
    """Send a message with copies of some descriptors, as sendmsg(2)."""
    rights = b"".join(one.to_bytes(4, sys.byteorder) for one in descriptors)
    kind = _SOL_SOCKET.to_bytes(4, sys.byteorder) + _SCM_RIGHTS.to_bytes(4, sys.byteorder)
    control = _words(16 + len(rights)) + kind + rights + bytes(-len(rights) % 8)
    # Each buffer is kept in a variable, because the kernel gets only its address.
    vector = bytes(_Pointer(data)) + _words(len(data))
    header = _words(0, 0) + bytes(_Pointer(vector)) + _words(1) + bytes(_Pointer(control)) + _words(len(control), 0)
    if _sendmsg(fd, header, 0) < 0:
        raise _fail()


def close_range(first: int, flags: int) -> None:
    """Close all descriptors from `first` on, or mark them close-on-exec, as close_range(2)."""
    if _syscall(_Long(_NR_CLOSE_RANGE), _UInt(first), _UInt(0xFFFFFFFF), _UInt(flags)) != 0:
        raise _fail()


def pidfd_getfd(pidfd: int, target: int) -> int:
    """Return a copy of another process's descriptor `target`, as pidfd_getfd(2)."""
    fd: int = _syscall(_Long(_NR_PIDFD_GETFD), pidfd, target, _UInt(0))
    if fd < 0:
        raise _fail()
    return fd


def keyctl_join_session_keyring() -> None:
    """Replace this process's session keyring by a new and empty one, as keyctl(2)."""
    number = _NR_KEYCTL.get(os.uname().machine, -1)  # no such call: ENOSYS
    if _syscall(_Long(number), _Long(_KEYCTL_JOIN_SESSION_KEYRING), None) < 0:
        raise _fail()


def open_tree(dir_fd: int, path: str, flags: int) -> int:
    """Return a descriptor of the mount at `path`, or of a detached copy, as open_tree(2)."""
    fd: int = _syscall(_Long(_NR_OPEN_TREE), dir_fd, _bytes(path), _UInt(flags))
    if fd < 0:
        raise _fail(path)
    return fd


def move_mount(from_fd: int, from_path: str, to_fd: int, to_path: str, flags: int) -> None:
    """Attach the mount `from` at `to`, as move_mount(2)."""
    done = _syscall(
        _Long(_NR_MOVE_MOUNT),
        from_fd,
        _bytes(from_path),
        to_fd,
        _bytes(to_path),
        _UInt(flags),
    )
    if done != 0:
        raise _fail(from_path or None, to_path or None)


def fsopen(fstype: str, flags: int = FSOPEN_CLOEXEC) -> int:
    """Return a descriptor to configure a new file system with, as fsopen(2)."""
    fd: int = _syscall(_Long(_NR_FSOPEN), _bytes(fstype), _UInt(flags))
    if fd < 0:
        raise _fail(fstype)
    return fd


def fsconfig(fd: int, command: int, key: str | None = None, value: str | None = None) -> None:
    """Set one parameter of a new file system, or create it, as fsconfig(2)."""
    done = _syscall(_Long(_NR_FSCONFIG), fd, _UInt(command), _bytes(key), _bytes(value), 0)
    if done != 0:
        raise _fail(f"{key}={value}" if key else None)


def fsmount(fd: int, flags: int, attributes: int) -> int:
    """Return a descriptor of a new, detached mount, as fsmount(2)."""
    mount_fd: int = _syscall(_Long(_NR_FSMOUNT), fd, _UInt(flags), _UInt(attributes))
    if mount_fd < 0:
        raise _fail()
    return mount_fd


def openat2(dir_fd: int, path: str, flags: int, resolve: int, mode: int = 0) -> int:
    """Open `path` with the lookup confined by `resolve`, as openat2(2); O_CLOEXEC is always added.

    For a path (or a link) with "..", the kernel fails with EAGAIN if any process renames or
    mounts something at that moment. The call is then repeated.
    """
    how = _words(flags | os.O_CLOEXEC, mode, resolve)
    for _ in range(_OPENAT2_TRIES):
        fd: int = _syscall(
            _Long(_NR_OPENAT2),
            dir_fd,
            _bytes(path),
            how,
            _ULong(len(how)),
        )
        if fd >= 0:
            return fd
        if _ctypes.get_errno() != errno.EAGAIN:
            break
    raise _fail(path)


def new_filesystem(
    fstype: str, strings: Iterable[tuple[str, str]], flags: Iterable[str] = (), attributes: int = 0
) -> int:
    """Return a detached mount of a new file system, as fsopen(2), fsconfig(2) and fsmount(2) make it."""
    context = fsopen(fstype)
    try:
        for key, value in strings:
            fsconfig(context, FSCONFIG_SET_STRING, key, value)
        for key in flags:
            fsconfig(context, FSCONFIG_SET_FLAG, key)
        fsconfig(context, FSCONFIG_CMD_CREATE)
        return fsmount(context, FSMOUNT_CLOEXEC, attributes)
    finally:
        os.close(context)


def mount_setattr(fd: int, flags: int, attr_set: int, propagation: int = 0) -> None:
    """Add attributes to those of the mount at `fd`, as mount_setattr(2)."""
    attributes = _words(attr_set, 0, propagation, 0)
    done = _syscall(
        _Long(_NR_MOUNT_SETATTR),
        fd,
        b"",
        _UInt(flags | AT_EMPTY_PATH),
        attributes,
        _ULong(len(attributes)),
    )
    if done != 0:
        raise _fail()
