# SPDX-License-Identifier: Apache-2.0
"""SquashFS through FUSE with no setuid helper.

We open /dev/fuse, make the mount ourselves in our own user namespace, and
give the server both descriptors. The mount stays detached until the server
has been left behind in the outer mount namespace: a server that can see its
own mount keeps itself alive for ever.
"""

from __future__ import annotations

import _signal
import errno

from .. import lean_os as os
from .. import linux, log
from ..errors import ChError
from .action import Action, Build

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .image import Image

# Ours, and no other unless the site names one: the system's takes images apart unconfined.
SERVER = __file__.rpartition("/engine/")[0] + "/native/ch-squashfuse_ll"

# fsconfig(2) takes strings of up to 255 bytes.
_SOURCE_BYTES = 255

# A server's standard error is read up to here when it fails.
_STDERR_BYTES = 4096


class ServeSquashFS(Action):
    """Mount a SquashFS file, detached, and start the process that serves it."""

    __slots__ = ("image", "owners", "server", "single", "timeout")

    def __init__(
        self, image: Image, server: str | None, single: bool = False, timeout: int = 0, owners: bool = False
    ) -> None:
        self.image = image
        self.server = server
        self.single = single  # one thread, where the server would have more
        self.owners = owners  # whether files have the image's; else, as only one id exists, all are the caller's
        self.timeout = timeout  # seconds that a request may wait before the kernel ends the mount; 0: for ever

    def describe(self) -> str:
        return f"mount SquashFS {self.image.path} with {self.server or SERVER}"

    def apply(self, build: Build) -> None:
        server = self.server or SERVER
        if not self.server and not os.access(server, os.X_OK):
            raise ChError(f"can't serve SquashFS: not found: {server}; build it (make), or name another (squashfuse=)")
        if self.timeout and not server.endswith("/ch-squashfuse_ll"):
            raise ChError(
                f"plugstack.conf: image_timeout={self.timeout} needs ch-squashfuse_ll, and squashfuse= names {server}"
            )
        fuse = _open_fuse()
        build.image_fd = _mount_fuse(fuse, self.image.path)
        words = []
        if not self.owners and server.endswith("/ch-squashfuse_ll"):
            words.append("-r")
        words += [*(["-s"] if self.single else []), *(["-t", str(self.timeout)] if self.timeout else [])]
        if self.image.offset:
            words += ["-o", f"offset={self.image.offset}"]
        words += [f"/dev/fd/{self.image.fd}", f"/dev/fd/{fuse}"]
        if self.server:
            build.server_stderr = _start_another(server, self.image.fd, fuse, words)
        else:
            build.server_pid, build.server_stderr = _start(server, self.image.fd, fuse, words)
        self.image.close()
        os.close(fuse)
        try:
            # The mounts made from here on must not be in the server's namespace.
            linux.unshare(linux.CLONE_NEWNS)
        except OSError as error:
            raise ChError("can't create mount namespace") from error


def _open_fuse() -> int:
    try:
        return os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise ChError("can't open /dev/fuse") from error


def _mount_fuse(fuse: int, source: str) -> int:
    options = (
        ("source", _shown(source)),
        ("subtype", "slurm_ch"),
        ("fd", str(fuse)),
        ("rootmode", "40000"),
        ("user_id", "0"),
        ("group_id", "0"),
    )
    # "ro" is not of the mount only: else the kernel takes every read for a new time
    # of access, and asks for a file's attributes again and again.
    attributes = linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV | linux.MOUNT_ATTR_RDONLY
    try:
        return linux.new_filesystem("fuse", options, ("allow_other", "ro"), attributes)
    except OSError as error:
        raise ChError("can't mount FUSE") from error


def _shown(source: str) -> str:
    """Return what the mount table shows for the image: its path, or the end of it where fsconfig takes no more."""
    path = os.fsencode(source)
    return source if len(path) <= _SOURCE_BYTES else "..." + os.fsdecode(path[3 - _SOURCE_BYTES :])


def spawn(argv: list[str], stderr: int, kept: Sequence[int]) -> int:
    """Start a server that has `kept` open, in a session of its own: no terminal's signal ends it before the command."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        pairs = [(null, 0), (null, 1), (stderr, 2), *((fd, fd) for fd in kept)]
        actions = [(os.POSIX_SPAWN_DUP2, one, other) for one, other in pairs]
        return os.posix_spawn(argv[0], argv, {}, file_actions=actions, setsid=True)
    finally:
        os.close(null)


def _start(server: str, image: int, fuse: int, words: list[str]) -> tuple[int, int]:
    """Start our server, which becomes nobody's child by itself; return whom it leaves, and a pipe with its errors."""
    reader, writer = os.pipe()
    try:
        return spawn([server, "-b", *words], writer, (image, fuse)), reader
    except OSError as error:
        raise ChError(f"can't serve SquashFS: {server}") from error
    finally:
        os.close(writer)


def reap(build: Build) -> None:
    """Wait for whom our server has left, not sooner than need be: it starts beside what we do."""
    pid, build.server_pid = build.server_pid, -1
    if pid > 0:
        # Who ignores SIGCHLD, or waits for all of its children, has done that.
        try:
            os.waitpid(pid, 0)
        except ChildProcessError:
            pass


def _start_another(server: str, image: int, fuse: int, words: list[str]) -> int:
    """Start the site's server as ours starts itself, and return the end of a pipe with its errors."""
    reader, writer = os.pipe()
    # Neither the terminal's nor the step's signals may end the server before
    # the command: it ends by itself when the mount does. SIGPIPE: we stop listening once it serves.
    # Who ignores SIGCHLD can't wait for a child.
    before = _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    child = os.fork()
    if child == 0:
        code = 126
        try:
            for number in (_signal.SIGHUP, _signal.SIGINT, _signal.SIGTERM, _signal.SIGPIPE, _signal.SIGQUIT):
                _signal.signal(number, _signal.SIG_IGN)
            os.chdir("/")
            # What the image talks its server into is done with no capability.
            linux.prctl_root_is_nobody()
            linux.prctl_no_new_privs()
            # It gets what is duplicated, and nothing that we or our caller have open.
            linux.close_range(3, linux.CLOSE_RANGE_CLOEXEC)
            spawn([server, "-f", *words], writer, (image, fuse))
            code = 0
        except OSError as error:
            os.write(writer, f"{server}: {error.strerror}".encode())
        finally:
            os._exit(code)
    os.close(writer)
    os.waitpid(child, 0)
    _signal.signal(_signal.SIGCHLD, before)
    return reader


def server_words(build: Build, error: OSError) -> str:
    """Return what the server said before it failed, in brackets, or nothing."""
    if build.server_stderr < 0 or error.errno not in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO):
        return ""
    if error.errno == errno.EIO:
        # It lives, and there may be no end of file to wait for.
        os.set_blocking(build.server_stderr, False)
    # Else it is dead or dying: end of file is near.
    said = b""
    try:
        while len(said) < _STDERR_BYTES and (more := os.read(build.server_stderr, _STDERR_BYTES)):
            said += more
    except OSError as trouble:
        log.debug(f"nothing more from the server: {trouble.strerror}")
    text = said.decode("utf-8", "replace").strip().replace("\n", "; ")
    log.debug(f"the server said: {text}")
    return f" ({text})" if text else ""
