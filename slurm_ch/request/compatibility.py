# SPDX-License-Identifier: Apache-2.0
"""How a container differs from slurm_ch's usual one if it was requested by pyxis' options."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class ContainerName:
    """The name of a container that is kept for later steps, and how to use it."""

    __slots__ = ("how", "label", "mark", "name", "of_job", "read_only")

    def __init__(self, name: str, how: str, label: str, *, of_job: bool, read_only: bool) -> None:
        self.name = name
        self.how = how  # one of NAMED
        self.label = label
        self.of_job = of_job  # whether it is removed at the job's end; else it stays until somebody removes it
        self.read_only = read_only  # whether this step may not write to it
        self.mark = ""  # the source name of its overlay, unique on the node


# How to use a name: join, reuse or create the container; only create; only join; never join.
AUTO, CREATE, EXEC, NO_EXEC = NAMED = ("auto", "create", "exec", "no_exec")


class Compatibility:
    """What pyxis users expect in addition to a Spec's options."""

    __slots__ = (
        "container_name",
        "defaults",
        "drop",
        "entrypoint",
        "gpus",
        "if_image_has",
        "keep",
        "notes",
        "speaks",
        "start_in_image",
        "tmp_of_image",
        "tmpfs_mounts",
        "unmounted",
    )  # fmt: skip

    def __init__(self) -> None:
        # True: start in the image's directory, else in /. False: in the job's directory if the container has it.
        self.start_in_image = True
        self.tmp_of_image = False  # whether /tmp is the image's
        # Devices to show if the node has specs of them: kind, names, and the variable that asks for them, or "".
        self.gpus: tuple[str, Sequence[str], str] | None = None
        self.tmpfs_mounts: Sequence[tuple[str, dict[str, str], str]] = ()  # path, mount options, label
        self.unmounted: Sequence[tuple[str, str]] = ()  # path, label
        # If the image's entrypoint is to be run: the option that asks for it, and whether to show its output.
        self.entrypoint: tuple[str, bool] | None = None
        self.speaks = False  # whether to show the output of /etc/rc.local
        self.notes: Sequence[str] = ()  # warnings for the user
        self.defaults: Sequence[tuple[str, str]] = ()  # records for the task plan, after the image's environment
        self.drop: Sequence[str] = ()  # variables of the job that the container doesn't get
        self.container_name: ContainerName | None = None
        self.keep: Sequence[str] = ()  # variables that keep the job's value, even if the image sets them
        # A variable, and the records for the task plan if the image's environment has it.
        self.if_image_has: tuple[str, Sequence[tuple[str, str]]] = ("", ())
