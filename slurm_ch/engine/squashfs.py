# SPDX-License-Identifier: Apache-2.0
"""Mount SquashFS images by FUSE, without a setuid helper.

The launcher opens /dev/fuse, mounts in its own user namespace, and starts the
server with the descriptors of /dev/fuse and the image. It attaches the mount only
after it has entered another mount namespace than the server's: a server that
can see its own mount keeps the mount alive, and so never ends.
"""

from __future__ import annotations

import _signal
import errno

from .. import agreement, linux, log
from .. import lean_os as os
from ..errors import ChError
from .action import Action, Build

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .image import Image

# The system's squashfuse is used only if the site names it: it parses images without confining itself.
SERVER = __file__.rpartition("/engine/")[0] + "/native/ch-squashfuse_ll"

# fsconfig(2) takes strings of up to 255 bytes.
_SOURCE_BYTES = 255

# A failed server's standard error is read up to this length.
_STDERR_BYTES = 4096


class ServeSquashFS(Action):
    """Mount a SquashFS file, detached, and start the process that serves it.

    `single`: the server uses one thread. `timeout`: seconds after which the kernel ends the mount if the
    server doesn't answer a request; 0 for no limit. `owners`: show the owners in the image; otherwise all
    files are the caller's, as only one id is mapped.
    """

    __slots__ = ("image", "owners", "server", "single", "timeout")

    def __init__(
        self, image: Image, server: str | None, single: bool = False, timeout: int = 0, owners: bool = False
    ) -> None:
        self.image = image
        self.server = server
        self.single = single
        self.owners = owners
        self.timeout = timeout

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
            build.server_stderr = _start_site_server(server, self.image.fd, fuse, words)
        else:
            build.server_pid, build.server_stderr = _start(server, self.image.fd, fuse, words)
        self.image.close()
        os.close(fuse)
        try:
            # The server must not see the mounts that are made from here on.
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
    # "ro" also makes the superblock read-only: otherwise each read may change a file's
    # access time, and the kernel asks the server for the file's attributes again.
    attributes = linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV | linux.MOUNT_ATTR_RDONLY
    try:
        return linux.new_filesystem("fuse", options, ("allow_other", "ro"), attributes)
    except OSError as error:
        raise ChError("can't mount FUSE") from error


def _shown(source: str) -> str:
    """Return the mount's source name: the image's path, or its end if it is longer than fsconfig accepts."""
    path = os.fsencode(source)
    return source if len(path) <= _SOURCE_BYTES else "..." + os.fsdecode(path[3 - _SOURCE_BYTES :])


def spawn(argv: list[str], stderr: int, kept: Sequence[int]) -> int:
    """Start a server with an empty environment that inherits `stderr` and the descriptors `kept`; return its pid.

    It has its own session, so that the terminal's signals don't end it before the command.
    """
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        pairs = [(null, 0), (null, 1), (stderr, 2), *((fd, fd) for fd in kept)]
        actions = [(os.POSIX_SPAWN_DUP2, one, other) for one, other in pairs]
        return os.posix_spawn(argv[0], argv, {}, file_actions=actions, setsid=True)
    finally:
        os.close(null)


def _start(server: str, image: int, fuse: int, words: list[str]) -> tuple[int, int]:
    """Start ch-squashfuse_ll; return a pid to reap, and a pipe with its error messages.

    The server forks, and its parent, whose pid this is, exits.
    """
    reader, writer = os.pipe()
    try:
        return spawn([server, "-b", *words], writer, (image, fuse)), reader
    except OSError as error:
        raise ChError(f"can't serve SquashFS: {server}") from error
    finally:
        os.close(writer)


def reap(build: Build) -> None:
    """Reap the server's parent. Call it late: the server starts in parallel with the rest of the plan."""
    pid, build.server_pid = build.server_pid, -1
    if pid > 0:
        # No child is left if this process ignores SIGCHLD, or has waited for all children.
        try:
            os.waitpid(pid, 0)
        except ChildProcessError:
            pass


def _start_site_server(server: str, image: int, fuse: int, words: list[str]) -> int:
    """Start the server that the site names, detached and confined like ours; return a pipe with its error messages."""
    reader, writer = os.pipe()
    # Neither the terminal's nor the step's signals may end the server before the command; it ends
    # when the mount does. SIGPIPE is ignored because nobody reads the pipe once the server works.
    # A process that ignores SIGCHLD can't wait for its children.
    before = _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    child = os.fork()
    if child == 0:
        code = agreement.EXIT_CANNOT_EXECUTE
        try:
            for number in (_signal.SIGHUP, _signal.SIGINT, _signal.SIGTERM, _signal.SIGPIPE, _signal.SIGQUIT):
                _signal.signal(number, _signal.SIG_IGN)
            os.chdir("/")
            # No capabilities: a malicious image may take over its server.
            linux.prctl_root_is_nobody()
            linux.prctl_no_new_privs()
            # The server inherits only the duplicated descriptors.
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


def server_errors(build: Build, error: OSError) -> str:
    """Return the failed server's error message, in brackets, or ""."""
    if build.server_stderr < 0 or error.errno not in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO):
        return ""
    if error.errno == errno.EIO:
        # The server is alive, and may keep the pipe open: don't wait for its end.
        os.set_blocking(build.server_stderr, False)
    # After the other errors, the server has ended or is about to: the pipe's end comes soon.
    data = b""
    try:
        while len(data) < _STDERR_BYTES and (more := os.read(build.server_stderr, _STDERR_BYTES)):
            data += more
    except OSError as trouble:
        log.debug(f"nothing more from the server: {trouble.strerror}")
    text = data.decode("utf-8", "replace").strip().replace("\n", "; ")
    log.debug(f"the server's error message: {text}")
    return f" ({text})" if text else ""
