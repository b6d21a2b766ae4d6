# SPDX-License-Identifier: Apache-2.0
"""The actions that a container's CDI devices add to its plan.

A spec's mounts become binds; missing destinations are created. The dynamic
linker's cache is updated by the image's own `ldconfig`, which runs inside the
container, as the user.
"""

from __future__ import annotations

import _signal
import os
import select
import stat

from .. import agreement, linux, log
from ..errors import ChError, describe
from . import binds, ch_join, places, task_plan
from .action import Action, Build, MoreActions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import NoReturn

    from ..devices.edits import Injection
    from ..devices.records import Node

# On Debian and Ubuntu, ldconfig is a script that runs ldconfig.real.
_LDCONFIGS = (
    "/sbin/ldconfig.real",
    "/usr/sbin/ldconfig.real",
    "/sbin/ldconfig",
    "/usr/sbin/ldconfig",
    "/usr/bin/ldconfig",
)
_CACHE_DIRECTORY = "/etc"
_CUDA_COMPAT = "/usr/local/cuda/compat"

# Unless a spec's hook sets another.
_LDCONFIG_TIMEOUT_SECONDS = 60


def actions(injection: Injection, groups: Iterable[int]) -> MoreActions:
    """Return the actions for `injection`; `groups` are the ids of the user's groups."""
    extra = MoreActions()
    extra.before_binds += [Report(text) for text in injection.remarks]
    extra.before_binds += [Report(text, quiet=True) for text in injection.notes]
    for gid in sorted(set(injection.gids) - set(groups)):
        extra.before_binds.append(
            Report(f"{injection.gids[gid]}: you are not in group {gid}, and nobody can be added here")
        )
    for path, node in injection.nodes.items():
        if os.path.normpath(node.source) != path:
            extra.in_tree.append(_node_bind(node, path))
        extra.in_tree.append(CheckNode(node))
    extra.in_tree += _binds(injection)
    extra.in_tree += [Link(target, link) for link, target in injection.links.items()]
    if injection.cuda_compat is not None:
        extra.in_tree.append(CheckCudaCompat(injection.cuda_compat))
    if injection.cache:
        extra.before_binds.append(MakeWriteable((_CACHE_DIRECTORY, *injection.folders)))
        update = UpdateCache(injection.folders, injection.timeout or _LDCONFIG_TIMEOUT_SECONDS)
        extra.before_binds.append(ch_join.OpenChJoin(update, "ldconfig"))
        extra.inside.append(update)
    return extra


def _node_bind(node: Node, path: str) -> binds.BindMount:
    # Nothing can be created in /dev, which is the host's. CheckNode reports what is missing.
    in_dev = path.startswith("/dev/")
    return binds.BindMount(
        node.source, path, src_optional=True, dst_optional=in_dev, dst_create=not in_dev, follow=True, label=node.where
    )


def _binds(injection: Injection) -> list[Action]:
    found: list[Action] = []
    # Parents before what is mounted below them.
    for path in sorted(injection.mounts, key=lambda path: (path.count("/"), path)):
        mount = injection.mounts[path]
        found.append(Mount(mount.source, path, binds.attributes_of(mount.options), mount.where))
    return found


class Mount(binds.BindMount):
    """A mount that a spec lists. If the user can't reach its source, it is left out with a warning."""

    __slots__ = ()

    def __init__(self, source: str, path: str, attributes: int, label: str) -> None:
        super().__init__(source, path, dst_create=True, attributes=attributes, follow=True, label=label)

    def _clone_source(self) -> int:
        try:
            return super()._clone_source()
        except ChError as error:
            if not isinstance(error.__cause__, PermissionError):
                raise
            log.warning(f"{self.label}: {self.src} is not mounted: you can't reach it: {error.__cause__.strerror}")
            return -1


class Report(Action):
    """Report what is not done for a device, once per container: a warning, or with `quiet` a note."""

    __slots__ = ("quiet", "text")

    def __init__(self, text: str, quiet: bool = False) -> None:
        self.text = text
        self.quiet = quiet

    def describe(self) -> str:
        return f"report: {self.text}"

    def apply(self, build: Build) -> None:
        del build
        (log.info if self.quiet else log.warning)(self.text)


class MakeWriteable(Action):
    """Make the given directories of the image writeable, as far as they exist."""

    __slots__ = ("paths",)

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = paths

    def describe(self) -> str:
        return f"make writeable, if they exist: {' '.join(self.paths)}"

    def apply(self, build: Build) -> None:
        for path in self.paths:
            try:
                directory = places.look_up(build, path, True)
            except OSError:
                continue
            if stat.S_ISDIR(os.fstat(directory).st_mode):
                directory = places.writeable(build, directory, path)
            os.close(directory)


class CheckNode(Action):
    """Warn if a device node is not where programs in the container will look for it, or is another device."""

    __slots__ = ("node",)

    def __init__(self, node: Node) -> None:
        self.node = node

    def describe(self) -> str:
        return f"check device node {self.node.path}"

    def apply(self, build: Build) -> None:
        why = self._wrong(build)
        if why:
            log.warning(f"{self.node.where}: device node {self.node.path}: {why}")

    def _wrong(self, build: Build) -> str | None:
        node = self.node
        try:
            fd = places.look_up(build, node.path, True)
        except OSError as error:
            return error.strerror
        found = os.fstat(fd)
        os.close(fd)
        kinds = {"b": stat.S_ISBLK, "c": stat.S_ISCHR, "u": stat.S_ISCHR, "p": stat.S_ISFIFO}
        is_kind = kinds.get(node.type)
        if not (is_kind(found.st_mode) if is_kind else stat.S_ISBLK(found.st_mode) or stat.S_ISCHR(found.st_mode)):
            return "not a device of the kind that its spec says"
        numbers = (os.major(found.st_rdev), os.minor(found.st_rdev))
        # A major number of zero means that the spec gives none.
        for wanted, number in zip((node.major, node.minor), numbers):
            if node.major and wanted is not None and wanted != number:
                return f"is {numbers[0]}:{numbers[1]}, not {node.major}:{node.minor} as its spec says"
        return None


class CheckCudaCompat(Action):
    """Warn if the image has CUDA compatibility libraries newer than the driver: a hook would enable them, we don't."""

    __slots__ = ("version",)

    def __init__(self, version: str) -> None:
        self.version = version

    def describe(self) -> str:
        return f"look for CUDA libraries newer than the driver {self.version} in {_CUDA_COMPAT}"

    def apply(self, build: Build) -> None:
        try:
            fd = linux.openat2(build.root_fd, _CUDA_COMPAT[1:], os.O_RDONLY | os.O_DIRECTORY, linux.RESOLVE_IN_ROOT)
        except OSError:
            return
        names = [name.removeprefix("libcuda.so.") for name in os.listdir(fd) if name.startswith("libcuda.so.")]
        os.close(fd)
        if any(_major(name) > _major(self.version) for name in names):
            log.warning(
                f"enable-cuda-compat is not done: the image's libraries in {_CUDA_COMPAT} are newer than the driver;"
                f" the option set-env with LD_LIBRARY_PATH={_CUDA_COMPAT}:$LD_LIBRARY_PATH prefers them"
            )


def _major(version: str) -> int:
    digits = version.partition(".")[0]
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 10 else 0


class Link(Action):
    """Make a symbolic link in the image. It replaces another link, but no other file; failures are warnings."""

    __slots__ = ("link", "target")

    def __init__(self, target: str, link: str) -> None:
        self.target = target
        self.link = link

    def describe(self) -> str:
        return f"link {self.link} to {self.target}"

    def apply(self, build: Build) -> None:
        directory = -1
        try:
            directory = places.create_parents(build, os.path.dirname(self.link), True)
            name = os.path.basename(self.link)
            there = _link_at(directory, name)
            if there == self.target:
                return
            directory = places.writeable(build, directory, self.link)
            if there is not None:
                os.unlink(name, dir_fd=directory)
            os.symlink(self.target, name, dir_fd=directory)
        except FileExistsError:
            log.warning(f"link {self.link} to {self.target} not made: something else is there")
        except OSError as error:
            log.warning(f"link {self.link} to {self.target} not made: {error.strerror}")
        except ChError as error:
            log.warning(f"link {self.link} to {self.target} not made: {error}")
        finally:
            if directory >= 0:
                os.close(directory)


def _link_at(directory: int, name: str) -> str | None:
    try:
        return os.readlink(name, dir_fd=directory)
    except OSError:
        return None


class UpdateCache(Action):
    """Run the image's ldconfig for the directories with new libraries; `timeout` is in seconds."""

    __slots__ = ("ch_join_fd", "folders", "timeout")

    def __init__(self, folders: Sequence[str], timeout: int) -> None:
        self.ch_join_fd = -1
        self.folders = folders
        self.timeout = timeout

    def describe(self) -> str:
        return " ".join(("update the dynamic linker's cache: ldconfig", *self.folders))

    def apply(self, build: Build) -> None:
        program = next((path for path in _LDCONFIGS if os.access(path, os.X_OK)), None)
        if program is None:
            where = f" in {':'.join(self.folders)}" if self.folders else ""
            log.warning(f"the image has no ldconfig: its programs may not find libraries{where}")
            os.close(self.ch_join_fd)
            return
        output = os.memfd_create("slurm_ch-ldconfig", os.MFD_CLOEXEC)
        # A process that ignores SIGCHLD can't wait for its children's status.
        before = _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        try:
            pid = os.fork()
            if pid == 0:
                _execute(self.ch_join_fd, program, self.folders, output)
            status = self._wait(pid, program)
            if status != 0:
                words = os.pread(output, 1000, 0).decode("utf-8", "replace").strip().replace("\n", "; ")
                raise ChError(f"the image's {program} failed with status {status}: {words}")
        finally:
            _signal.signal(_signal.SIGCHLD, before)
            os.close(output)
            os.close(self.ch_join_fd)

    def _wait(self, pid: int, program: str) -> int:
        pidfd = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            ended = poll.poll(self.timeout * 1000)
            if not ended:
                _kill_all(pid)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        finally:
            os.close(pidfd)
        if not ended:
            raise ChError(f"the image's {program} took longer than {self.timeout} s")
        return status


def _kill_all(pid: int) -> None:
    """Kill a process and all processes in its group."""
    try:
        os.killpg(pid, _signal.SIGKILL)
    except ProcessLookupError:  # it hasn't called setsid() yet
        os.kill(pid, _signal.SIGKILL)


def _execute(entering: int, program: str, folders: Sequence[str], output: int) -> NoReturn:
    """Replace this process by the image's ldconfig, with the user's ids, no privileges, and no inherited descriptors.

    ch-join executes it: if the path is a link to /proc/self/exe, that must not lead to the host's Python.
    """
    try:
        # In its own session, it has no terminal, and can be killed together with what it starts.
        os.setsid()
        linux.prctl_no_new_privs()
        linux.prctl_root_is_nobody()
        linux.prctl_parent_death_signal(_signal.SIGKILL)
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        os.dup2(null, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        linux.close_range(3, linux.CLOSE_RANGE_CLOEXEC)
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        ch_join.execute(entering, task_plan.encode([]), [program, "--", *folders], env)
    except (ChError, OSError) as error:
        os.write(output, describe(error).encode())
    finally:
        os._exit(agreement.EXIT_CANNOT_EXECUTE)
