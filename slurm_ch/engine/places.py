# SPDX-License-Identifier: Apache-2.0
"""Places in the new root: finding them, and making them where they are missing.

All look-ups inside the image go through openat2(2), confined by the kernel to
the new root, and what it returns is a descriptor that is mounted on: a
symbolic link or a rename in the image can't redirect a mount.
"""

from __future__ import annotations

import _stat as stat
import errno

from .. import lean_os as os
from .. import linux, log
from ..errors import ChError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .action import Build

_BENEATH = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_MAGICLINKS
_PLAIN = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS
# As many as the kernel follows.
_MAX_LINKS = 40
_IN_ROOT = linux.RESOLVE_IN_ROOT | linux.RESOLVE_NO_MAGICLINKS

_ONTO = linux.MOVE_MOUNT_F_EMPTY_PATH | linux.MOVE_MOUNT_T_EMPTY_PATH
# Each costs a mount, and an overlay about as much as a dozen.
_MAX_ENTRIES = 40
_LOCKED = linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV

# Read at once, where a buffered file would take it by pieces.
_READ_BYTES = 1 << 16

# What our mounts are called.
SOURCE = "slurm_ch"

# In the staging directory: the layers of overmounts, and the image without them.
SCRATCH = "scratch"
UNCOVERED = "uncovered"


class BoundError(ChError):
    """What should be created would be created on the host."""


def mount_id(fd: int) -> int:
    """Return the id of the mount that `fd` is in, as in /proc/self/mountinfo."""
    info = os.open(f"/proc/self/fdinfo/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(info, 4096)
    finally:
        os.close(info)
    for line in text.split(b"\n"):
        if line.startswith(b"mnt_id:"):
            return int(line[7:])
    raise ChError(f"no mnt_id in /proc/self/fdinfo/{fd}")


def look_up(build: Build, path: str, follow: bool) -> int:
    """Return an O_PATH descriptor of `path` in the new root; OSError, EXDEV if it escapes.

    Absolute symbolic links mean the image. What climbs above the root escapes, and stays there with `follow`.
    """
    try:
        return linux.openat2(build.root_fd, path.lstrip("/") or ".", os.O_PATH, _IN_ROOT if follow else _BENEATH)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    # An absolute link, or an escape.
    return linux.openat2(build.root_fd, without_links(build, path) or ".", os.O_PATH, _PLAIN)


def without_links(build: Build, path: str, follow: bool = False) -> str:
    """Return `path`, relative to the new root, with its symbolic links resolved, as far as it exists.

    OSError: EXDEV if it climbs above the root (unless it may, to `follow`), ELOOP.
    """
    done: list[str] = []
    rest = path.split("/")[::-1]
    left = _MAX_LINKS
    while rest:
        name = rest.pop()
        if name in ("", "."):
            continue
        if name == "..":
            if not done and not follow:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            del done[-1:]
            continue
        done.append(name)
        try:
            link = linux.openat2(build.root_fd, "/".join(done), os.O_PATH | os.O_NOFOLLOW, _PLAIN)
        except (FileNotFoundError, NotADirectoryError):
            return "/".join((*done, *(one for one in rest[::-1] if one not in ("", "."))))
        try:
            target = os.readlink("", dir_fd=link)
        except OSError:  # no link
            continue
        finally:
            os.close(link)
        left -= 1
        if not left:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        done = [] if target.startswith("/") else done[:-1]
        rest += target.split("/")[::-1]
    return "/".join(done)


def open_file(build: Build, path: str, how: int = os.O_RDONLY) -> int:
    """Return a file of the image, opened for reading; OSError if it can't be. Never waits, as a FIFO would."""
    return linux.openat2(build.root_fd, path.lstrip("/"), how | os.O_NONBLOCK | os.O_NOCTTY, _IN_ROOT)


def create(build: Build, path: str, directory: bool, follow: bool = False, cover: bool = True) -> int:
    """Make a mount point at `path`, with the directories above it, and return it opened.

    Where a symbolic link leads nowhere, it is made where that leads.
    """
    try:
        parts = without_links(build, path, follow).split("/")
        if directory:
            return _make_directories(build, parts, path, cover)
        parent = _make_directories(build, parts[:-1], path, cover)
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise ChError(f"{path} not subdirectory of the image's root") from None
        raise ChError(f"can't create {path}") from error
    try:
        parent = writeable(build, parent, path, cover)
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open(parts[-1], flags, 0o600, dir_fd=parent))
        return os.open(parts[-1], os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except OSError as error:
        raise ChError(f"can't create {path}") from error
    finally:
        os.close(parent)


def create_parents(build: Build, path: str, follow: bool = False, cover: bool = True) -> int:
    """Return the directory `path` opened, made with all above it where missing."""
    return _make_directories(build, without_links(build, path, follow).split("/"), path, cover)


def _make_directories(build: Build, parts: Sequence[str], path: str, cover: bool) -> int:
    """Return the last of nested directories opened; `path` is how the user knows it."""
    if ".." in parts:
        raise ChError(f"can't create a directory below '..': {path}")
    here = linux.openat2(build.root_fd, ".", os.O_PATH, _PLAIN)
    for name in filter(None, parts):
        try:
            deeper = linux.openat2(here, name, os.O_PATH | os.O_DIRECTORY, _PLAIN)
        except FileNotFoundError:
            here = writeable(build, here, path, cover)
            os.mkdir(name, 0o755, dir_fd=here)
            deeper = linux.openat2(here, name, os.O_PATH | os.O_DIRECTORY, _PLAIN)
        os.close(here)
        here = deeper
    return here


def writeable(build: Build, directory: int, path: str, cover: bool = True) -> int:
    """Return `directory`, or a writeable overmount of it, in which a name can be made.

    Where it returns another descriptor, `directory` is closed. ChError when the
    directory is in a mount from the host: creating there would create on the host.
    OSError if it is not writeable, and not to be covered.
    """
    if mount_id(directory) not in build.mounts:
        where = os.readlink(f"/proc/self/fd/{directory}").removeprefix(f"/{build.root}") or "/"
        raise BoundError(f"{path}: {where} is bound from the host; nothing is created there")
    if os.access(f"/proc/self/fd/{directory}", os.W_OK):
        return directory
    if not cover:
        why = errno.EROFS if os.fstatvfs(directory).f_flag & os.ST_RDONLY else errno.EACCES
        raise OSError(why, os.strerror(why))
    over = _overmount(build, directory, path)
    os.close(directory)
    return over


def _overmount(build: Build, directory: int, path: str) -> int:
    """Cover a directory by what shows all that is in it and is ours to write."""
    log.debug(f"overmounting {os.readlink(f'/proc/self/fd/{directory}')}")
    entries = _few_entries(build, directory)
    if entries is None:
        layers = f"{SCRATCH}/{build.overmounts}"
        build.overmounts += 1
        os.mkdir(layers, 0o755)
        os.mkdir(f"{layers}/upper", 0o755)
        os.mkdir(f"{layers}/work", 0o700)
        cover = overlay_of(build, directory, path, layers)
        lay_over(build, directory, cover)
    else:
        cover = tmpfs({"size": "1m", "mode": f"{os.fstat(directory).st_mode & 0o7777:o}"})
        lay_over(build, directory, cover, entries)
    build.covers.append(os.dup(cover))
    return cover


def _few_entries(build: Build, directory: int) -> Sequence[str] | None:
    """Return what is in a directory, if all of it can be bound into another; None if an overlay is better.

    Through an overlay, programs find and read the image's files more slowly; so a read-only
    image's root, below which all of them are, has none.
    """
    if not build.read_only:
        return None
    try:
        entries = os.listdir(f"/proc/self/fd/{directory}")
    except OSError:  # not to be read
        return None
    return entries if len(entries) <= _MAX_ENTRIES else None


def overlay_of(build: Build, directory: int, path: str, layers: str) -> int:
    """Return a detached overlay of a directory of the image, with the layers in `layers`, to create `path` there."""
    lower = _uncovered(build, directory)
    try:
        return overlay(f"/proc/self/fd/{lower}", f"{layers}/upper", f"{layers}/work", _LOCKED)
    except OSError as error:
        where = os.readlink(f"/proc/self/fd/{directory}").removeprefix(f"/{build.root}") or "/"
        raise ChError(
            f"{where} of the image can't be overlaid, to create {path} there: create it in the image"
        ) from error
    finally:
        os.close(lower)


def lay_over(build: Build, directory: int, cover: int, entries: Sequence[str] = ()) -> None:
    """Attach a mount at the directory that it covers; what is mounted below stays.

    `entries` of the directory are to be shown in the cover; an overlay has them.
    """
    below = [(name, linux.openat2(directory, name, os.O_PATH, _PLAIN)) for name in mounted_below(directory)]
    is_root = same_place(directory, build.root_fd)
    linux.move_mount(cover, "", directory, "", _ONTO)
    mounted = {name for name, _ in below}
    for name in entries:
        _show(build, directory, cover, name, name in mounted)
    for name, fd in below:
        # The cover has the places, but not what is mounted on them.
        _attach(fd, cover, name)
        os.close(fd)
    build.mounts.add(mount_id(cover))
    if is_root:
        # Look-ups begin in the cover from now on; nothing crosses to it from below.
        os.close(build.root_fd)
        build.root_fd = os.dup(cover)


def _attach(mount: int, directory: int, name: str) -> None:
    place = linux.openat2(directory, name, os.O_PATH, _BENEATH | linux.RESOLVE_NO_SYMLINKS)
    linux.move_mount(mount, "", place, "", _ONTO)
    os.close(place)


def _show(build: Build, directory: int, cover: int, name: str, mounted: bool) -> None:
    """Make an entry of `directory` in its cover: a link as it is, a place for what is `mounted` there, else a bind."""
    # Looked up once: who may write to the image may put a link in its place meanwhile, which would mean the host.
    entry = linux.openat2(directory, name, os.O_PATH | os.O_NOFOLLOW, _PLAIN)
    try:
        kind = os.fstat(entry).st_mode
        if stat.S_ISLNK(kind):
            os.symlink(os.readlink("", dir_fd=entry), name, dir_fd=cover)
            return
        if stat.S_ISDIR(kind):
            os.mkdir(name, 0o755, dir_fd=cover)
        else:
            os.mknod(name, 0o600, dir_fd=cover)
        if not mounted:
            clone = linux.open_tree(entry, "", linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC | linux.AT_EMPTY_PATH)
            _attach(clone, cover, name)
            build.mounts.add(mount_id(clone))
            os.close(clone)
    finally:
        os.close(entry)


def same_place(one: int, other: int) -> bool:
    """Whether two descriptors are of one place: the same file, in the same mount."""
    return os.path.samestat(os.fstat(one), os.fstat(other)) and mount_id(one) == mount_id(other)


def _uncovered(build: Build, directory: int) -> int:
    """Return `directory` as it is in the image, below any cover of ours.

    The kernel stacks two overlays, not three, and write-fake's is one already.
    Nothing is lost: what we make in a cover is ours to write, and never covered.
    """
    if build.uncovered_fd < 0:
        # Attached, because older kernels overlay nothing that isn't. With the
        # mounts in it, because some may not be left out.
        os.mkdir(UNCOVERED, 0o700)
        flags = linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC | linux.AT_RECURSIVE | linux.AT_EMPTY_PATH
        build.uncovered_fd = linux.open_tree(build.root_fd, "", flags)
        linux.move_mount(build.uncovered_fd, "", linux.AT_FDCWD, UNCOVERED, linux.MOVE_MOUNT_F_EMPTY_PATH)
    path = os.readlink(f"/proc/self/fd/{directory}").removeprefix(f"/{build.root}").lstrip("/")
    return linux.openat2(build.uncovered_fd, path or ".", os.O_PATH, _BENEATH | linux.RESOLVE_NO_SYMLINKS)


def mounted_below(directory: int) -> list[str]:
    """Return the places below `directory` on which there is a mount, as relative paths."""
    base, parent = os.fsencode(os.readlink(f"/proc/self/fd/{directory}")) + b"/", b"%d" % mount_id(directory)
    found = []
    for line in read_whole("/proc/self/mountinfo").splitlines():
        _, above, _, _, point, _ = line.split(b" ", 5)
        if above == parent:
            path = _unescape(point)
            if path.startswith(base):
                found.append(os.fsdecode(path[len(base) :]))
    return found


def read_whole(path: str, dir_fd: int | None = None) -> bytes:
    """Return a file of /proc, whose size nobody knows before its end."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        text = part = os.read(file, _READ_BYTES)
        while part:
            part = os.read(file, _READ_BYTES)
            text += part
    finally:
        os.close(file)
    return text


def _unescape(field: bytes) -> bytes:
    """Return a path of mountinfo as it is: blanks, newlines and backslashes are octal there."""
    first, *rest = field.split(b"\\")
    return first + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in rest)


def overlay(
    lower: str,
    upper: str,
    work: str,
    attributes: int = 0,
    *,
    index: bool = True,
    volatile: bool = True,
    source: str = SOURCE,
) -> int:
    """Return a detached overlay mount of the three directories.

    With an index, they can't be in use, nor the upper one be of another image.
    """
    layers = (("lowerdir", lower), ("upperdir", upper), ("workdir", work))
    options = (("source", source), *layers, ("index", "on" if index else "off"))
    flags = ("userxattr", "volatile") if volatile else ("userxattr",)
    return linux.new_filesystem("overlay", options, flags, attributes)


def tmpfs(options: dict[str, str]) -> int:
    """Return a detached, empty tmpfs."""
    return linux.new_filesystem("tmpfs", (("source", SOURCE), *options.items()), attributes=_LOCKED)
