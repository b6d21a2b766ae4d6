# SPDX-License-Identifier: Apache-2.0
"""Find paths in the new root, and create mount points that are missing.

Every look-up inside the image uses openat2(2), which the kernel confines to the
new root. It returns a descriptor, and that is what is mounted on: neither a
symbolic link nor a rename in the image can redirect a mount.
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
# A directory with more entries is covered by an overlay, which costs as much as a dozen mounts.
_MAX_ENTRIES = 40
_LOCKED = linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV

_READ_BYTES = 1 << 16

# The source name of slurm_ch's mounts in /proc/PID/mountinfo.
SOURCE = "slurm_ch"

# Directories in the staging tmpfs: for the layers of covers, and the image without covers.
SCRATCH = "scratch"
UNCOVERED = "uncovered"


class BoundError(ChError):
    """The file can't be created because its directory is bound from the host."""


def mount_id(fd: int) -> int:
    """Return the id of the mount that `fd` is in; /proc/self/mountinfo has the same ids."""
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
    """Return an O_PATH descriptor of `path` in the new root; OSError on failure.

    Absolute symbolic links are resolved inside the image. A path that climbs above the root
    stays at the root with `follow`, and is an error (EXDEV) without.
    """
    try:
        return linux.openat2(build.root_fd, path.lstrip("/") or ".", os.O_PATH, _IN_ROOT if follow else _BENEATH)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    # An absolute link, or an escape.
    return linux.openat2(build.root_fd, without_links(build, path) or ".", os.O_PATH, _PLAIN)


def exists(build: Build, path: str) -> bool:
    """Whether `path` is in the new root, and can be reached; with "/." at its end, whether it is a directory."""
    try:
        os.close(look_up(build, path, True))
    except (OSError, ValueError):
        return False
    return True


def without_links(build: Build, path: str, follow: bool = False) -> str:
    """Return `path`, relative to the new root, with its symbolic links resolved as far as it exists.

    OSError: ELOOP; EXDEV if the path climbs above the root, unless `follow`.
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
    """Return a descriptor of a file of the image; OSError on failure. Doesn't block, not even for a FIFO."""
    return linux.openat2(build.root_fd, path.lstrip("/"), how | os.O_NONBLOCK | os.O_NOCTTY, _IN_ROOT)


def create(build: Build, path: str, directory: bool, follow: bool = False, cover: bool = True) -> int:
    """Create a mount point at `path`, with the directories above it; return an O_PATH descriptor.

    If `path` is a dangling symbolic link, create the link's target. `cover`: see `writeable`. ChError on failure.
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
    """Return a descriptor of the directory `path`; create it and the directories above it if they are missing."""
    return _make_directories(build, without_links(build, path, follow).split("/"), path, cover)


def _make_directories(build: Build, parts: Sequence[str], path: str, cover: bool) -> int:
    """Return a descriptor of the last of nested directories, created where missing; `path` is for messages."""
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
    """Return a descriptor of `directory` in which files can be created.

    If the directory is not writeable, mount a writeable cover over it; `directory` is then
    closed, and the cover's descriptor returned. Without `cover`, raise OSError instead.
    BoundError if the directory is bound from the host, where nothing may be created.
    `path` is what should be created, for messages.
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
    """Mount over a directory a writeable cover that shows the same entries; return its descriptor."""
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
    """Return the directory's entries if each can be bound into a tmpfs; None if an overlay is better.

    Programs read an image's files more slowly through an overlay. So a read-only image's
    root directory, which all paths lead through, should not be covered by one.
    """
    if not build.read_only:
        return None
    try:
        entries = os.listdir(f"/proc/self/fd/{directory}")
    except OSError:  # not readable
        return None
    return entries if len(entries) <= _MAX_ENTRIES else None


def overlay_of(build: Build, directory: int, path: str, layers: str) -> int:
    """Return a detached overlay of a directory of the image; its other layers are `layers`/upper and /work.

    `path` is what will be created there, for messages.
    """
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
    """Attach the mount `cover` at `directory`, and move the mounts below the directory onto it.

    `entries` are those of the directory that have to be made in the cover; an overlay has them already.
    """
    below = [(name, linux.openat2(directory, name, os.O_PATH, _PLAIN)) for name in mounted_below(directory)]
    is_root = same_place(directory, build.root_fd)
    linux.move_mount(cover, "", directory, "", _ONTO)
    mounted = {name for name, _ in below}
    for name in entries:
        _copy_entry(build, directory, cover, name, name in mounted)
    for name, fd in below:
        # The cover has the mount points, but not the mounts.
        _attach(fd, cover, name)
        os.close(fd)
    build.mounts.add(mount_id(cover))
    if is_root:
        # Look-ups must begin in the cover: none that begins below it can reach it.
        os.close(build.root_fd)
        build.root_fd = os.dup(cover)


def _attach(mount: int, directory: int, name: str) -> None:
    place = linux.openat2(directory, name, os.O_PATH, _BENEATH | linux.RESOLVE_NO_SYMLINKS)
    linux.move_mount(mount, "", place, "", _ONTO)
    os.close(place)


def _copy_entry(build: Build, directory: int, cover: int, name: str, mounted: bool) -> None:
    """Make an entry of `directory` in its cover: a copy of a link, a mount point if `mounted`, else a bind."""
    # Looked up only once: a user who can write to the image could replace the entry by a link to the host.
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
    """Whether two descriptors are of the same file in the same mount."""
    return os.path.samestat(os.fstat(one), os.fstat(other)) and mount_id(one) == mount_id(other)


def _uncovered(build: Build, directory: int) -> int:
    """Return a descriptor of `directory` as it is in the image, without the covers.

    The kernel stacks at most two overlays, and write-fake's is one of them. Nothing is
    lost without the covers: directories made in a cover are writeable, and never covered.
    """
    if build.uncovered_fd < 0:
        # Attached, because older kernels refuse a detached mount as a layer. Recursive,
        # because the kernel refuses to leave out locked mounts.
        os.mkdir(UNCOVERED, 0o700)
        flags = linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC | linux.AT_RECURSIVE | linux.AT_EMPTY_PATH
        build.uncovered_fd = linux.open_tree(build.root_fd, "", flags)
        linux.move_mount(build.uncovered_fd, "", linux.AT_FDCWD, UNCOVERED, linux.MOVE_MOUNT_F_EMPTY_PATH)
    path = os.readlink(f"/proc/self/fd/{directory}").removeprefix(f"/{build.root}").lstrip("/")
    return linux.openat2(build.uncovered_fd, path or ".", os.O_PATH, _BENEATH | linux.RESOLVE_NO_SYMLINKS)


def mounted_below(directory: int) -> list[str]:
    """Return the mount points below `directory`, as relative paths."""
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
    """Return the contents of a file of /proc, which has no size."""
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
    """Decode a path of mountinfo, in which blanks, newlines and backslashes are octal escapes."""
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

    With `index`, the kernel refuses directories that are in use, and an upper directory of another lower one.
    `volatile`: don't sync the upper directory to disk. `source`: the mount's name in mountinfo.
    """
    layers = (("lowerdir", lower), ("upperdir", upper), ("workdir", work))
    options = (("source", source), *layers, ("index", "on" if index else "off"))
    flags = ("userxattr", "volatile") if volatile else ("userxattr",)
    return linux.new_filesystem("overlay", options, flags, attributes)


def tmpfs(options: dict[str, str]) -> int:
    """Return a detached, empty tmpfs with these mount options."""
    return linux.new_filesystem("tmpfs", (("source", SOURCE), *options.items()), attributes=_LOCKED)
