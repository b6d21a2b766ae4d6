# SPDX-License-Identifier: Apache-2.0
"""The container: its record, its plan, and applying the plan.

The order of the actions is a contract. All mounts are made in the outer
namespaces. The commands' own namespaces are created last: then the kernel locks
every mount, and root in the container can't undo any of them.
"""

from __future__ import annotations

import errno

from .. import lean_os as os
from .. import log
from ..errors import ChError, UsageError
from ..request.spec import Bind as BindSpec
from ..request.spec import check_combination
from . import accounts, binds, image, root, task_plan
from .action import Action, Build, Hooks, MoreActions, RunHooks
from .environment import Environment
from .namespaces import ForbidNesting, NewNamespaces
from .user_directories import temporary_directories

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..devices.edits import Injection
    from ..request.spec import Spec
    from .caller import Caller

# Bound from the host, in every container.
REQUIRED_BINDS = ("/dev", "/proc", "/sys")
# Bound if the host has them: without them, programs can't resolve host names.
NAME_SERVICE_BINDS = ("/etc/hosts", "/etc/resolv.conf")
TIME_ZONE = "/etc/localtime"
# Bound if both the host and the image have them.
OPTIONAL_BINDS = (
    "/etc/machine-id",
    "/var/lib/hugetlbfs",
    "/etc/opt/cray/wlm_detect",
    "/opt/cray/wlm_detect",
    "/opt/cray/alps",
    "/opt/cray/udreg",
    "/opt/cray/ugni",
    "/opt/cray/xpmem",
    "/var/opt/cray/alps",
    "/var/spool/slurmd",
)


class Container:
    """A container to be made: the spec, checked against this machine, the image, and hooks.

    Raises ChError if there is no such image, UsageError if an option can't be used with it.
    With `joining`, for a process that enters another's container, the image is not looked at.
    """

    __slots__ = (
        "build", "caller", "gid", "hooks_all", "hooks_guest", "hooks_host", "image", "injection", "spec",
        "squashfuse", "uid",
    )  # fmt: skip

    def __init__(self, spec: Spec, caller: Caller, squashfuse: str | None = None, joining: bool = False) -> None:
        check_combination(spec)
        self.spec = spec
        self.caller = caller
        self.squashfuse = squashfuse
        self.build = Build()  # for hooks that add to the tree
        self.uid = caller.uid if spec.uid is None else spec.uid
        self.gid = caller.gid if spec.gid is None else spec.gid
        if joining:
            self.image = image.Image(spec.image, image.JOINED, "/")
        else:
            storage = image.storage_directory(spec.storage, caller.environment, caller.user)
            if spec.image_directory is None:
                caller.path(spec.image)
            self.image = image.resolve(spec.located or spec.image, storage, spec.image_directory or caller.cwd)
            check_image(spec, self.image, storage)
            if spec.write and self.image.fd >= 0 and os.fstatvfs(self.image.fd).f_flag & os.ST_RDONLY:
                raise UsageError(
                    f"{spec.label('write')}: {spec.image} is on a read-only file system here; write-fake keeps changes"
                    " in memory instead"
                )
            if storage and "storage" in spec.labels and not os.path.isdir(caller.path(storage)):
                log.warning(f"{spec.label('storage')}={storage}: no such directory")
            if spec.mount_point is not None:
                self._check_mount_point(spec.mount_point)
        self.injection = find_devices(spec, caller)
        self.hooks_host = Hooks("host")
        self.hooks_guest = Hooks("guest")
        self.hooks_all = Hooks("all")

    def _check_mount_point(self, path: str) -> None:
        """Check the mount point as ch-run does. It is not used: the image is mounted detached."""
        label = self.spec.label("mount")
        if self.image.kind != image.SQUASHFS:
            log.warning(f"{label}={path}: ignored: the image is not a SquashFS file")
        elif not os.path.isdir(os.path.join(self.caller.cwd, path)):
            raise UsageError(f"{label}={path}: the mount point is not a directory")

    def plan(self) -> tuple[Action, ...]:
        """Return all actions that make the container, in order. Changes nothing."""
        extra = self._device_actions()
        actions = self._tree(extra)
        return (
            NewNamespaces((self.caller.uid, self.caller.gid), (0, 0)),
            # With the host as image, programs that make namespaces should work as they do outside.
            *([] if self.spec.userns or self.image.kind == image.HOST else [ForbidNesting()]),
            self._image_action(),
            root.OpenSources([action for action in actions if isinstance(action, binds.BindMount)]),
            root.MountStaging(self.image.reference),
            *actions,
            RunHooks(self, self.hooks_host),
            *([] if self.spec.write or self.spec.write_fake else [root.ReadOnlyCovers()]),
            root.Pivot(),
            NewNamespaces((0, 0), (self.uid, self.gid), last=True, more=self.spec.unshare),
            *extra.inside,
            RunHooks(self, self.hooks_guest),
        )

    def plan_of_tree(self) -> tuple[Action, ...]:
        """Return the actions that mount only the image and its kept changes: no binds, no commands' namespaces."""
        return (
            NewNamespaces((self.caller.uid, self.caller.gid), (0, 0)),
            self._image_action(),
            root.MountStaging(self.image.reference),
            *self._changes(),
        )

    def _device_actions(self) -> MoreActions:
        extra = MoreActions()
        if self.injection is not None:
            from . import device_edits

            extra = device_edits.actions(self.injection, os.getgroups())
        if self.spec.compatibility is not None:
            from . import image_requests

            extra = image_requests.actions(extra, self.spec, self.spec.compatibility, self.injection, self.caller)
        return extra

    def _tree(self, extra: MoreActions) -> list[Action]:
        """Return the actions that fill the new root."""
        spec = self.spec
        actions: list[Action] = []
        if not spec.write:
            actions.append(root.ReadOnlyRoot())
        actions += self._changes()
        actions += extra.before_binds
        if self.image.kind == image.HOST:
            # The host has everything that is bound by default.
            actions += [root.PrivateTmp()] if spec.private_tmp else []
        else:
            actions += self._default_binds()
            actions += self._tmp()
        if spec.home:
            actions += self._home()
        if "PMIX_NAMESPACE" in self.caller.environment:
            actions += self._pmix()
        actions += extra.in_tree
        actions += self._user_mounts()
        if self.image.kind != image.HOST and not spec.like_ch_run:
            actions += self._temporary_directories()
        if self.caller.script:
            actions.append(root.ShowScript(self.caller.script))
        actions.append(Environment(spec, self.caller, self.injection))
        if self.image.kind != image.HOST and spec.passwd:
            actions += self._accounts()
        # Nothing is added to a writeable image's directories, unless the user asks for the relay.
        if spec.relay or (spec.relay is None and self.caller.script and not spec.write and spec.relay_commands):
            actions.append(self._relay())
        return actions

    def _changes(self) -> list[Action]:
        """Return the action that lets commands write to the tree without changing the image, if one is wanted."""
        spec = self.spec
        if spec.overlay is not None:
            from . import overlay_directory

            return overlay_directory.actions(spec, self.caller.path(spec.overlay), self.image, self.hooks_host)
        return [root.WriteFake(spec.write_fake, spec.write_fake_label())] if spec.write_fake is not None else []

    def _user_mounts(self) -> list[Action]:
        found = [self._user_bind(bind) for bind in self.spec.binds]
        if self.spec.compatibility is None:
            return found
        from . import compatibility

        return [
            *compatibility.tmpfs_mounts(self.spec.compatibility),
            *found,
            *compatibility.unmounted(self.spec.compatibility),
        ]

    def _pmix(self) -> list[Action]:
        from . import pmix
        from .implied_binds import ImpliedBind

        env, munge = self.caller.environment, bool(self.spec.relay)
        actions: list[Action] = [ImpliedBind(path, "PMIx") for path in pmix.directories(env, munge)]
        if pmix.needs_munge(env) and not munge and not any(bind.dst == pmix.MUNGE for bind in self.spec.binds):
            actions.append(pmix.ReportMunge())
        return actions

    def _relay(self) -> Action:
        from .. import paths
        from . import relay

        return relay.OfferCommands(
            self.spec.relay_commands,
            paths.CH_RELAY,
            self.caller.environment.get("PATH", ""),
            defaults={name: self._anchored(name, value) for name, value in self.spec.relay_defaults.items()},
            label=self.spec.labels.get("relay", ""),
            # In a kept overlay, the commands would become part of the user's changes.
            writeable=self.spec.write_fake is not None and self.spec.overlay is None,
        )

    def _anchored(self, variable: str, value: str) -> str:
        """Return a default for steps started inside, with its relative paths made absolute."""
        from .. import agreement
        from ..request import anchor, options

        if not variable.startswith(agreement.SRUN_PREFIX):
            return value  # a variable of pyxis
        wanted = variable[len(agreement.SRUN_PREFIX) :]
        option = next(one for one in options.OPTIONS if one.variable == wanted)
        return anchor.anchored(option, value, self.caller.cwd)

    def _accounts(self) -> list[Action]:
        uid, gid = self.uid, self.gid
        if self.spec.like_ch_run:
            return [
                root.WriteFile(
                    "/etc/passwd", accounts.passwd_text(uid, accounts.user_line(uid, gid, "/")), create=False
                ),
                root.WriteFile("/etc/group", accounts.group_text(gid, accounts.group_line(gid)), create=False),
            ]
        # Names are looked up here, before any namespace is entered; the home is known only later.
        user, group = accounts.user_line(uid, gid, "\0"), accounts.group_line(gid)
        return [
            root.AddAccount(
                "/etc/passwd",
                lambda build: user.replace("\0", accounts.field(build.home)),
                lambda line: accounts.passwd_text(uid, line),
            ),
            root.AddAccount("/etc/group", lambda build: group, lambda line: accounts.group_text(gid, line)),
        ]

    def _image_action(self) -> Action:
        if self.image.kind == image.SQUASHFS:
            from . import squashfs

            return squashfs.ServeSquashFS(
                self.image, self.squashfuse, self.spec.fuse_single, self.spec.image_timeout, self.spec.like_ch_run
            )
        return root.OpenDirectory(self.image)

    def _default_binds(self) -> list[Action]:
        made = not self.spec.like_ch_run  # ch-run requires the mount points in the image
        # /proc stays writeable if commands may create user namespaces: their maps are written there. Also, the kernel
        # refuses a new mount of /proc to a process that sees only a read-only one.
        required = [
            binds.BindMount(path, path, readonly=path != "/proc" or not self.spec.userns, dst_create=made, follow=True)
            for path in REQUIRED_BINDS
        ]
        names = [
            binds.BindMount(
                path, path, src_optional=True, dst_create=made, dst_optional=not made, readonly=True, follow=True
            )
            for path in NAME_SERVICE_BINDS
        ]
        optional: list[Action] = [
            binds.BindMount(path, path, src_optional=True, dst_optional=True, readonly=True, follow=True)
            for path in OPTIONAL_BINDS
        ]
        if self.spec.compatibility is not None:
            from . import compatibility

            return [
                *required,
                *names,
                *compatibility.host_name_and_time_zone(TIME_ZONE, self.spec.save is not None),
                *optional,
            ]
        if log.level() >= log.INFO and made:
            from . import locales

            optional.append(locales.ReportMissingLocale(self.caller.environment, self.spec.option("set-env")))
        # With `write`, the mount point would be created in the user's image.
        zone = [] if self.spec.write or self.spec.like_ch_run or _is_utc() else [root.BindWhereMissing(TIME_ZONE)]
        return [*required, *names, *zone, *optional]

    def _tmp(self) -> list[Action]:
        if self.spec.like_ch_run:
            if self.spec.private_tmp:
                return [root.PrivateTmp()]
            where = self.caller.environment.get("TMPDIR") or "/tmp"
            return [binds.BindMount(where, "/tmp", follow=True)]
        if self.spec.private_tmp:
            return [root.PrivateTmp(), root.PrivateTmp("/var/tmp", optional=True)]
        if self.spec.compatibility and self.spec.compatibility.tmp_of_image:
            return []
        # In this order: an image's /var/tmp may be a link to /tmp.
        return [
            binds.BindMount("/var/tmp", "/var/tmp", src_optional=True, dst_optional=True, follow=True),
            binds.BindMount("/tmp", "/tmp", dst_create=True, follow=True),
        ]

    def _temporary_directories(self) -> list[Action]:
        found = temporary_directories(self.caller)
        if not found:
            return []
        from .implied_binds import ImpliedBind

        # If one can't be shown, ch-join reports what it uses instead.
        return [ImpliedBind(path, "TMPDIR", log.INFO) for path in found]

    def _home(self) -> list[Action]:
        home, label = self.caller.environment.get("HOME"), self.spec.label("home")
        if not home:
            raise UsageError(f"{label}: HOME is not set")
        there = self.caller.home_directory()
        if home.startswith(there + "/") and not self.spec.like_ch_run:
            there = home  # no mount point can be created in a directory that is bound
        actions: list[Action] = [binds.BindMount(home, there, dst_create=True, label=label)]
        if home.startswith("/") and home != there and not self.spec.like_ch_run:
            from .implied_binds import ImpliedBind

            actions.append(ImpliedBind(home, label))
        return actions

    def _user_bind(self, bind: BindSpec) -> Action:
        source, spec = self.caller.path(bind.src), self.spec
        # No mount point can be created in the host's own directories.
        create = spec.write or self.image.kind != image.HOST
        return binds.BindMount(
            source,
            bind.dst,
            dst_create=create,
            cover=not spec.write and not spec.like_ch_run,
            attributes=binds.attributes_of(bind.flags),
            recursive=True,
            label=bind.label,
        )


def _is_utc() -> bool:
    """Whether the host's time zone is UTC, which is also the default of an image without a time zone."""
    try:
        return os.readlink(TIME_ZONE).rpartition("/")[2] in ("UTC", "UCT", "Universal", "Zulu")
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EINVAL):  # missing, or not a link
            raise
        return False


def check_image(spec: Spec, found: image.Image, storage: str | None) -> None:
    """Raise UsageError if an option can't be used with this kind of image."""
    if spec.write and found.kind == image.SQUASHFS:
        raise UsageError(f"{spec.label('write')}: a SquashFS image can't be written to; use write-fake: {spec.image}")
    if spec.write and storage is not None and image.in_storage(found, storage):
        raise UsageError(f"{spec.label('write')}: an image in {storage} may only be written by ch-image: {spec.image}")
    if spec.write_fake is not None and found.kind == image.HOST:
        raise UsageError(
            f"{spec.write_fake_label()}: the host as image can't be overlaid: the kernel hides the mounts below /"
        )


def find_devices(spec: Spec, caller: Caller) -> Injection | None:
    """Return the merged edits of the requested devices, or None without any. Loads the CDI modules only if needed."""
    if not spec.devices and spec.compatibility:
        from . import compatibility

        compatibility.choose_gpus(spec, spec.compatibility, caller)
    if not spec.devices:
        return None
    from ..devices import library

    places = library.directories(spec.cdi_dirs, caller.environment)
    return library.find(spec.devices, places, caller.cwd, caller.environment)


def containerize(container: Container) -> Build:
    """Move this process into the container; ChError if that fails.

    Changes this process: its user and mount namespaces, root and working directory; it is
    no longer dumpable. The umask is restored. After a failure, the process is in half-built
    namespaces and can only exit; everything that was built disappears with it.
    """
    build = container.build
    # Files and directories that slurm_ch creates get fixed modes; the command keeps its umask.
    umask = os.umask(0o022)
    try:
        for action in container.plan():
            if log.level() >= log.DEBUG:
                log.debug(action.describe())
            try:
                action.apply(build)
            except OSError as error:
                raise ChError(f"can't {action.describe()}") from error
        container.hooks_all.run(container)
    finally:
        os.umask(umask)
        if build.server_pid > 0:
            from . import squashfs

            squashfs.reap(build)
    return build


def plan_bytes(build: Build) -> bytes:
    """Return the task plan that `ch-join` carries out, encoded."""
    return task_plan.encode(build.records)


def explain(container: Container) -> Sequence[str]:
    """Return the plan, one line per action. Changes nothing."""
    return [
        (isinstance(action, binds.BindMount) and action.left_out()) or action.describe() for action in container.plan()
    ]
