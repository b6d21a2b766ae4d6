# SPDX-License-Identifier: Apache-2.0
"""The record of a requested container, and the check that its options don't contradict each other."""

from __future__ import annotations

from .. import agreement
from ..errors import UsageError
from .options import DEFAULT_WRITE_FAKE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .compatibility import Compatibility


# A bind's flags, named as in mount(8).
MOUNT_FLAGS = ("ro", "nosuid", "nodev", "noexec")


class Bind:
    """A requested bind mount: source on the host, destination inside, and some of MOUNT_FLAGS.

    `label` is the option that asked for it, for messages.
    """

    __slots__ = ("dst", "flags", "label", "src")

    def __init__(self, src: str, dst: str, label: str = "", flags: tuple[str, ...] = ()) -> None:
        self.src = src
        self.dst = dst
        self.label = label
        self.flags = flags

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bind) and (self.src, self.dst, self.flags) == (other.src, other.dst, other.flags)

    def __hash__(self) -> int:
        return hash((self.src, self.dst, self.flags))

    def __repr__(self) -> str:
        return f"Bind({self.src!r}, {self.dst!r}{f', flags={self.flags!r}' if self.flags else ''})"


class Spec:
    """A requested container. The parsers check the form of the values, but nothing on the node."""

    __slots__ = (
        "binds", "broadcast", "cd", "cdi_dirs", "color", "compatibility", "devices", "env_expand", "env_rules",
        "fuse_single", "gid", "home", "image", "image_directory", "image_env", "image_timeout", "join", "join_count",
        "join_pid", "join_tag", "join_timeout", "keep_keyring", "labels", "like_ch_run", "located", "mount_point",
        "overlay", "passwd", "platform", "private_tmp", "pull", "relay", "relay_commands", "relay_defaults", "save",
        "seccomp", "storage", "uid", "unshare", "userns", "verbosity", "write", "write_fake",
    )  # fmt: skip

    def __init__(self, image: str) -> None:
        self.image = image
        self.image_directory: str | None = None  # where a relative image path starts; None: the step's directory
        self.like_ch_run = False  # whether the command was called as ch-run, whose defaults count then
        self.compatibility: Compatibility | None = None  # only for pyxis' options
        self.located: str | None = None  # the image's file, if the image is a reference
        self.pull: str | None = None
        self.platform: str | None = None
        self.labels: dict[str, str] = {}  # given option: how its user knows it, for messages
        self.binds: list[Bind] = []
        self.cd: str | None = None
        self.devices: list[tuple[str, str]] = []  # device, label of its option
        self.cdi_dirs: str | None = None
        self.env_rules: list[tuple[str, str]] = []  # kind, value: see environment.rule_records
        self.env_expand = True
        self.image_env: bool | None = None  # whether to apply the image's environment; None: if it brings one
        self.private_tmp = False
        self.passwd = True
        self.write = False
        self.write_fake: str | None = None
        self.overlay: str | None = None  # the directory in which changes are kept
        self.broadcast: str | None = None  # the directory of the copies on the nodes' disks; "": the site's
        self.save: str | None = None  # the file that the container is saved to at the end
        self.home = False
        self.uid: int | None = None
        self.gid: int | None = None
        self.storage: str | None = None
        self.relay: bool | None = None  # None: only in batch scripts
        self.relay_commands: Sequence[str] = ()  # set by the site
        self.relay_defaults: Mapping[str, str] = {}  # variables with defaults for steps started inside
        self.seccomp = False
        self.fuse_single = False
        self.keep_keyring = False
        self.image_timeout = 0  # set by the site, in seconds; 0: none
        self.unshare: tuple[str, ...] = ()  # some of net, ipc, uts
        self.userns = False
        self.mount_point: str | None = None
        self.verbosity = 0
        self.color: bool | None = None  # None: if standard error is a terminal
        self.join = False
        self.join_count: int | None = None
        self.join_tag: str | None = None
        self.join_pid: int | None = None
        self.join_timeout = float(agreement.JOIN_SECONDS)  # in seconds

    def label(self, name: str) -> str:
        """Return the option as its user knows it; in a Spec made by hand, the name of the field."""
        return self.labels.get(name) or name.replace("-", "_")

    def write_fake_label(self) -> str:
        """Return the given option that makes the image writeable in memory, directly or by implication."""
        given = [name for name in ("write-fake", "overlay", "home", "device") if name in self.labels]
        return self.label(given[0] if given else "write-fake")

    def option(self, name: str) -> str:
        """Return an option's name as this user would type it."""
        return f"--ch-{name}" if "image" in self.labels else f"--{name}"


_NOTHING: Mapping[str, str] = {}


def check_combination(spec: Spec, shown: Mapping[str, str] = _NOTHING) -> None:
    """Raise UsageError if fields contradict each other, and set fields that others imply.

    `shown` maps each given option to its label and value, for messages; it is empty for a Spec made by hand.
    """

    def wrong(name: str, why: str) -> UsageError:
        return UsageError(f"{shown.get(name) or spec.label(name)}: {why}")

    if spec.write and spec.write_fake is not None:
        raise wrong("write", f"contradicts {spec.label('write-fake')}")
    implying = [name for name, on in (("overlay", spec.overlay), ("home", spec.home), ("device", spec.devices)) if on]
    if spec.write and implying:
        raise wrong("write", f"contradicts {spec.label(implying[0])}, which implies write-fake")
    if implying and spec.write_fake is None:
        if "write-fake" in shown:
            raise wrong("write-fake", f"contradicts {spec.label(implying[0])}, which implies write-fake")
        spec.write_fake = DEFAULT_WRITE_FAKE
    if "quiet" in shown and "verbose" in shown:
        raise wrong("quiet", f"contradicts {spec.label('verbose')}")
    if spec.join_pid is not None and spec.join:
        raise wrong("join-pid", "contradicts --join, --join-ct and --join-tag")
    if spec.join_pid is not None and spec.devices:
        raise wrong("join-pid", f"contradicts {spec.label('device')}: that container is already made")
