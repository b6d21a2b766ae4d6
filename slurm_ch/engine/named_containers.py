# SPDX-License-Identifier: Apache-2.0
"""Named containers: their directories and locks, and the processes that run in them.

    OWN/of-job-JOB/NODE/NAME/    a container that is removed with its job; OWN is the user's (agreement.py)
    OWN/global/NODE/NAME/        a container that is kept until somebody removes it
        upper, work, image    see overlay_directory.py; `image` exists once the container has been made
        lock                  locked by a process that makes, joins or removes the container
        mark                  line 1: the source name of the overlay that was mounted last, by which its processes
                              are found; line 2: the step that mounted it

No daemon and no list records which containers run: the kernel's mounts show it. Loaded only for named containers.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from .. import agreement, linux, log
from ..errors import ChError
from . import namespaces, places
from .action import Build

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

# Namespaces that a container may have in addition to user and mount.
_FURTHER = ("net", "ipc", "uts")
_GLOBAL = "global"
# Prefix of a directory that is being removed.
_GONE = ".gone-"
# An overlay's source name appears as " - overlay MARK " in /proc/PID/mountinfo.
_MARK = "slurm_ch:"
_READ_BYTES = 1 << 16


class NamedContainer:
    """The directory of a named container on this node; `job` is None if the container outlives its job."""

    __slots__ = ("directory", "job", "name", "own")

    def __init__(self, root: str | None, job: str | None, node: str, name: str) -> None:
        self.own = own_directory(root)
        self.job = job
        self.name = name
        scope = _GLOBAL if job is None else agreement.CONTAINERS_OF_JOB + job
        self.directory = f"{self.own}/{scope}/{node}/{name}"

    def make_place(self) -> None:
        """Create the directory; ChError if the user's own directory belongs to somebody else."""
        try:
            os.mkdir(self.own, 0o700)
        except FileExistsError:
            pass
        check_own(self.own)
        os.makedirs(self.directory, 0o700, exist_ok=True)

    def lock(self, wait: bool) -> int | None:
        """Lock the container until the returned descriptor is closed; None if it is locked and `wait` is false."""
        while True:
            fd = -1
            try:
                fd = os.open(f"{self.directory}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The lock's previous holder may have removed the container.
                if os.path.samestat(os.fstat(fd), os.stat(f"{self.directory}/lock")):
                    return fd
            except FileNotFoundError:
                self.make_place()
            except BlockingIOError:
                os.close(fd)
                return None
            if fd >= 0:
                os.close(fd)

    def image(self) -> str | None:
        """Return the path of the image that the container was made from; None if it was not made."""
        return _text(f"{self.directory}/image")

    def reference(self) -> str | None:
        """Return the reference that its image was pulled by; None if it was not pulled."""
        return _text(f"{self.directory}/image", 1)

    def mark(self) -> str | None:
        """Return the source name of the overlay that was mounted last."""
        return _text(f"{self.directory}/mark")

    def maker(self) -> str | None:
        """Return the step that mounted the overlay last, and serves the image."""
        return _text(f"{self.directory}/mark", 1)

    def new_mark(self, step: str) -> str:
        """Choose and store the source name of the overlay that `step` will mount.

        It is random: only a process that can read this directory knows it.
        """
        found = _MARK + os.urandom(16).hex()
        fd = os.open(
            f"{self.directory}/mark", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        os.write(fd, os.fsencode(f"{found}\n{step}\n"))
        os.close(fd)
        return found

    def used(self) -> float:
        """Return when the overlay was mounted last, in seconds since the epoch; 0 if never."""
        try:
            return os.stat(f"{self.directory}/mark").st_mtime
        except OSError:
            return 0.0

    def remove(self) -> None:
        """Remove the container; others see it disappear atomically. The caller must hold the lock."""
        gone = f"{os.path.dirname(self.directory)}/{_GONE}{os.urandom(8).hex()}"
        os.rename(self.directory, gone)
        remove_tree(gone)


def own_directory(root: str | None) -> str:
    """Return the directory of the caller's containers; `root` is the site's directory, None for the default."""
    begin = agreement.CONTAINERS_OWN if root is None else root + agreement.CONTAINERS_BELOW
    return f"{begin}{os.geteuid()}"


def check_own(path: str) -> None:
    """Raise ChError if the directory isn't the user's alone, or if others could replace it."""
    found, above = os.lstat(path), os.stat(os.path.dirname(path))
    remedy = "have it removed, or the site name another place (plugstack.conf: containers=)"
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise ChError(f"{path}: not a directory that is yours alone; {remedy}")
    if above.st_mode & 0o022 and not above.st_mode & stat.S_ISVTX and above.st_uid != os.geteuid():
        raise ChError(f"{os.path.dirname(path)}: anybody may replace what is in it; {remedy}")


def all_of(root: str | None, job: str | None, node: str) -> Iterator[NamedContainer]:
    """Yield the caller's containers on this node: those of `job`, or with None those that outlive their jobs."""
    where = NamedContainer(root, job, node, "").directory
    try:
        check_own(own_directory(root))
        names = sorted(os.listdir(where))
    except (ChError, OSError):
        return
    for name in names:
        one = NamedContainer(root, job, node, name)
        if not name.startswith(".") and one.image() is not None:
            yield one


def nodes(root: str | None, job: str | None) -> list[str]:
    """Return the nodes that have containers of `job`, or with None containers that outlive their jobs."""
    try:
        return sorted(os.listdir(os.path.dirname(os.path.dirname(NamedContainer(root, job, "-", "-").directory))))
    except OSError:
        return []


def jobs(root: str | None) -> list[str]:
    """Return the jobs that have containers in this directory."""
    try:
        names = os.listdir(own_directory(root))
    except OSError:
        return []
    begin = agreement.CONTAINERS_OF_JOB
    return sorted(name[len(begin) :] for name in names if name.startswith(begin))


def remove_job(root: str | None, job: str) -> None:
    """Remove all containers of a job. The caller has made sure that the job has ended."""
    own = own_directory(root)
    check_own(own)
    gone = f"{own}/{_GONE}{os.urandom(8).hex()}"
    os.rename(f"{own}/{agreement.CONTAINERS_OF_JOB}{job}", gone)
    remove_tree(gone)


def sweep(root: str | None) -> None:
    """Finish removals that were interrupted."""
    own = own_directory(root)
    for name in os.listdir(own):
        if name.startswith(_GONE):
            remove_tree(f"{own}/{name}")


def remove_tree(path: str) -> None:
    """Remove a directory and everything in it, whatever modes the directories have."""
    left = [path]
    while left:
        here = left[-1]
        below = []
        try:
            os.chmod(here, 0o700)
            for entry in os.scandir(here):
                if entry.is_dir(follow_symlinks=False):
                    below.append(entry.path)
                else:
                    os.unlink(entry.path)
            if not below:
                os.rmdir(here)
        except FileNotFoundError:  # another process removes it too
            below = []
        if not below:
            left.pop()
        left += below


# ---- Which process runs in it ----


class Process:
    """A process in a container, with descriptors of its namespaces, which stay valid when it ends.

    ChError if it has already ended.
    """

    __slots__ = ("further", "mount_fd", "pid", "user_fd")

    def __init__(self, pid: int, proc_fd: int) -> None:
        self.pid = pid
        self.further = open_further(proc_fd, pid)
        self.user_fd, self.mount_fd = namespaces.open_at(proc_fd, pid)


def open_further(proc_fd: int, pid: int) -> Mapping[str, int]:
    """Return descriptors of the process's net, ipc and uts namespaces, as far as they differ from this process's."""
    found = {}
    for kind in _FURTHER:
        try:
            if os.stat(f"ns/{kind}", dir_fd=proc_fd).st_ino != os.stat(f"/proc/self/ns/{kind}").st_ino:
                found[kind] = os.open(f"ns/{kind}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc_fd)
        except OSError as error:
            raise ChError(f"join: can't open /proc/{pid}/ns/{kind}") from error
    return found


def find(mark: str) -> Process | None:
    """Return one of the caller's processes that has the overlay with this source name mounted, or None."""
    return _find(lambda proc_fd: is_in(mark, places.read_whole("mountinfo", proc_fd)))


def is_in(mark: str, mountinfo: bytes) -> bool:
    """Whether the overlay with this source name is among a process's mounts."""
    return f" - overlay {mark} ".encode() in mountinfo


def find_step(job: str, step: str) -> Process | None:
    """Return a process of a job's step that runs in a container of slurm_ch, or None."""
    own = os.stat("/proc/self/ns/user").st_ino
    wanted = {f"SLURM_JOB_ID={job}".encode(), f"SLURM_STEP_ID={step}".encode()}

    def is_one(proc_fd: int) -> bool:
        if os.stat("ns/user", dir_fd=proc_fd).st_ino == own:
            return False
        variables = set(places.read_whole("environ", proc_fd).split(b"\0"))
        return wanted <= variables and b" slurm_ch" in places.read_whole("mountinfo", proc_fd)

    return _find(is_one)


def _find(is_one: Callable[[int], bool]) -> Process | None:
    uid, seen = os.geteuid(), set()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        proc_fd = -1
        try:
            proc_fd = os.open(f"/proc/{name}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            if os.fstat(proc_fd).st_uid == uid:
                tree = os.stat("ns/mnt", dir_fd=proc_fd).st_ino
                if tree not in seen and is_one(proc_fd):
                    return Process(int(name), proc_fd)
                seen.add(tree)
        except (ChError, OSError):
            pass  # it has ended, or can't be inspected
        finally:
            if proc_fd >= 0:
                os.close(proc_fd)
    return None


def is_busy(directory: str) -> bool:
    """Whether the container's overlay is mounted in any mount namespace, even one that is about to disappear."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = try_overlay(directory)
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code == errno.EBUSY


def try_overlay(directory: str) -> int:
    """Try to mount an overlay of the container's directories; return 0, or the errno.

    Leaves this process in new namespaces: call it in a child.
    """
    namespaces.NewNamespaces((os.geteuid(), os.getegid()), (0, 0)).apply(Build())
    # Opened after entering: the layers must belong to this mount namespace.
    upper, work = (os.open(f"{directory}/{name}", os.O_PATH | os.O_CLOEXEC) for name in ("upper", "work"))
    staging = places.tmpfs({"size": "64k", "mode": "0700"})
    linux.move_mount(staging, "", linux.AT_FDCWD, "/", linux.MOVE_MOUNT_F_EMPTY_PATH)
    os.fchdir(staging)
    os.mkdir("probe", 0o700)
    try:
        os.close(places.overlay("probe", f"/proc/self/fd/{upper}", f"/proc/self/fd/{work}", volatile=False))
    except OSError as error:
        log.debug(f"overlay of {directory}: {error.strerror}")
        return error.errno or 1
    return 0


def _text(path: str, line: int = 0) -> str | None:
    """Return a line of a small file; None if the line is empty, or there is no such line or file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        text = os.read(fd, _READ_BYTES) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        os.close(fd)
    return [*os.fsdecode(text).split("\n"), ""][line] or None
