# SPDX-License-Identifier: Apache-2.0
"""Containers with a name: where they are kept, their locks, and which process runs in one.

    OWN/of-job-JOB/NODE/NAME/    one that goes with its job; OWN is the user's (agreement.py)
    OWN/global/NODE/NAME/        one that is kept until somebody removes it
        upper, work, image    as overlay_directory.py has them; `image` is there when it has been made
        lock                  held by whoever makes, joins or removes it
        mark                  what the overlay that is mounted now is called: so a process in it is found; and
                              the step that has mounted it

No process and no list says what runs: the kernel's mounts do. Loaded only where there is a name.
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

# What a container may have of its own besides.
_FURTHER = ("net", "ipc", "uts")
_GLOBAL = "global"
_GONE = ".gone-"
# What an overlay is called is found as " - overlay MARK " in /proc/PID/mountinfo.
_MARK = "slurm_ch:"
_READ_BYTES = 1 << 16


class KeptContainer:
    """The place of a container with a name on this node; `job` is None for one that outlives its job."""

    __slots__ = ("directory", "job", "name", "own")

    def __init__(self, root: str | None, job: str | None, node: str, name: str) -> None:
        self.own = own_directory(root)
        self.job = job
        self.name = name
        scope = _GLOBAL if job is None else agreement.CONTAINERS_OF_JOB + job
        self.directory = f"{self.own}/{scope}/{node}/{name}"

    def make_place(self) -> None:
        """Make the directory; ChError if it can't be the user's own."""
        try:
            os.mkdir(self.own, 0o700)
        except FileExistsError:
            pass
        check_own(self.own)
        os.makedirs(self.directory, 0o700, exist_ok=True)

    def lock(self, wait: bool) -> int | None:
        """Return a descriptor that keeps others from it for as long as it is open; None if another has it."""
        while True:
            fd = -1
            try:
                fd = os.open(f"{self.directory}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Whoever had it before may have removed all of it.
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
        """Return the path of the image that it was made of; None if it was not made."""
        return _text(f"{self.directory}/image")

    def reference(self) -> str | None:
        """Return the reference that its image was pulled by; None if it was none."""
        return _text(f"{self.directory}/image", 1)

    def mark(self) -> str | None:
        """Return what the overlay is called that was mounted last."""
        return _text(f"{self.directory}/mark")

    def maker(self) -> str | None:
        """Return the step that mounted it last, and serves its image."""
        return _text(f"{self.directory}/mark", 1)

    def new_mark(self, step: str) -> str:
        """Return what the overlay that a step is to mount is called; nobody can guess it who can't look here."""
        found = _MARK + os.urandom(16).hex()
        fd = os.open(
            f"{self.directory}/mark", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        os.write(fd, os.fsencode(f"{found}\n{step}\n"))
        os.close(fd)
        return found

    def used(self) -> float:
        """Return when its overlay was mounted last, in seconds since the epoch."""
        try:
            return os.stat(f"{self.directory}/mark").st_mtime
        except OSError:
            return 0.0

    def remove(self) -> None:
        """Remove it, in a moment as seen by others. Whoever calls has the lock."""
        gone = f"{os.path.dirname(self.directory)}/{_GONE}{os.urandom(8).hex()}"
        os.rename(self.directory, gone)
        remove_tree(gone)


def own_directory(root: str | None) -> str:
    """Return where the caller's containers are, below the site's directory."""
    begin = agreement.CONTAINERS_OWN if root is None else root + agreement.CONTAINERS_BELOW
    return f"{begin}{os.geteuid()}"


def check_own(path: str) -> None:
    """Raise ChError unless the directory, and who may put another in its place, is the user's alone."""
    found, above = os.lstat(path), os.stat(os.path.dirname(path))
    remedy = "have it removed, or the site name another place (plugstack.conf: containers=)"
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise ChError(f"{path}: not a directory that is yours alone; {remedy}")
    if above.st_mode & 0o022 and not above.st_mode & stat.S_ISVTX and above.st_uid != os.geteuid():
        raise ChError(f"{os.path.dirname(path)}: anybody may replace what is in it; {remedy}")


def all_of(root: str | None, job: str | None, node: str) -> Iterator[KeptContainer]:
    """Yield the caller's containers on this node: a job's, or those that outlive theirs."""
    where = KeptContainer(root, job, node, "").directory
    try:
        check_own(own_directory(root))
        names = sorted(os.listdir(where))
    except (ChError, OSError):
        return
    for name in names:
        one = KeptContainer(root, job, node, name)
        if not name.startswith(".") and one.image() is not None:
            yield one


def nodes(root: str | None, job: str | None) -> list[str]:
    """Return the nodes whose containers, of a job or those that outlive theirs, are here."""
    try:
        return sorted(os.listdir(os.path.dirname(os.path.dirname(KeptContainer(root, job, "-", "-").directory))))
    except OSError:
        return []


def jobs(root: str | None) -> list[str]:
    """Return the jobs that have containers here."""
    try:
        names = os.listdir(own_directory(root))
    except OSError:
        return []
    begin = agreement.CONTAINERS_OF_JOB
    return sorted(name[len(begin) :] for name in names if name.startswith(begin))


def remove_job(root: str | None, job: str) -> None:
    """Remove all that is kept of a job's containers; the caller knows that the job is over."""
    own = own_directory(root)
    check_own(own)
    gone = f"{own}/{_GONE}{os.urandom(8).hex()}"
    os.rename(f"{own}/{agreement.CONTAINERS_OF_JOB}{job}", gone)
    remove_tree(gone)


def sweep(root: str | None) -> None:
    """Remove what was about to be removed when something ended the process that did it."""
    own = own_directory(root)
    for name in os.listdir(own):
        if name.startswith(_GONE):
            remove_tree(f"{own}/{name}")


def remove_tree(path: str) -> None:
    """Remove a directory with all that is in it, whatever the modes are that its owner gave them."""
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
        except FileNotFoundError:  # somebody else is at it
            below = []
        if not below:
            left.pop()
        left += below


# ---- Which process runs in it ----


class Process:
    """A process in a container, and its namespaces: these stay when it ends. ChError if it has ended."""

    __slots__ = ("further", "mount_fd", "pid", "user_fd")

    def __init__(self, pid: int, proc_fd: int) -> None:
        self.pid = pid
        self.further = open_further(proc_fd, pid)
        self.user_fd, self.mount_fd = namespaces.open_at(proc_fd, pid)


def open_further(proc_fd: int, pid: int) -> Mapping[str, int]:
    """Return descriptors of the namespaces of further kinds in which the process isn't with us."""
    found = {}
    for kind in _FURTHER:
        try:
            if os.stat(f"ns/{kind}", dir_fd=proc_fd).st_ino != os.stat(f"/proc/self/ns/{kind}").st_ino:
                found[kind] = os.open(f"ns/{kind}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc_fd)
        except OSError as error:
            raise ChError(f"join: can't open /proc/{pid}/ns/{kind}") from error
    return found


def find(mark: str) -> Process | None:
    """Return a process of the caller's in whose tree the overlay of that name is; None if there is none."""
    return _find(lambda proc_fd: is_in(mark, places.read_whole("mountinfo", proc_fd)))


def is_in(mark: str, mountinfo: bytes) -> bool:
    """Whether the overlay of that name is among a process's mounts."""
    return f" - overlay {mark} ".encode() in mountinfo


def find_step(job: str, step: str) -> Process | None:
    """Return a process of a job's step that is in a container of ours."""
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
            pass  # it has ended, or doesn't let us look
        finally:
            if proc_fd >= 0:
                os.close(proc_fd)
    return None


def is_busy(directory: str) -> bool:
    """Whether the kernel has a container's overlay mounted, in whosever tree: who leaves one may take a moment."""
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
    """Return the number of the error that an overlay of a container's directories is, or 0.

    Leaves this process good for nothing else.
    """
    namespaces.NewNamespaces((os.geteuid(), os.getegid()), (0, 0)).apply(Build())
    # Now: what is overlaid must be of this namespace.
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
    """Return a line of a small file, the first by default; None if there is none, or no such file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        text = os.read(fd, _READ_BYTES) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        os.close(fd)
    return [*os.fsdecode(text).split("\n"), ""][line] or None
