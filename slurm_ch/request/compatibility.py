# SPDX-License-Identifier: Apache-2.0
"""How a container differs from the usual one because users of another tool expect it."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class ContainerName:
    """A container that has a name, and is there again for later steps."""

    __slots__ = ("how", "label", "mark", "name", "of_job", "read_only")

    def __init__(self, name: str, how: str, label: str, *, of_job: bool, read_only: bool) -> None:
        self.name = name
        self.how = how  # one of NAMED
        self.label = label
        self.of_job = of_job  # gone with the job, else there until it is removed
        self.read_only = read_only  # nothing is written to it this time
        self.mark = ""  # what tells its overlay from others on the node


# What is done about a name: join, reuse or create; only create; only join; never join.
AUTO, CREATE, EXEC, NO_EXEC = NAMED = ("auto", "create", "exec", "no_exec")


class Compatibility:
    """What users of another tool expect beyond a Spec's options; a Spec without one is a usual container's."""

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
        self.start_in_image = True  # in the image's directory, else in /; if not: in the job's, if it is there
        self.tmp_of_image = False  # /tmp is the image's own
        # Devices to show where the node has specs of them: (kind, names, and who has asked, or "" for nobody).
        self.gpus: tuple[str, Sequence[str], str] | None = None
        self.tmpfs_mounts: Sequence[tuple[str, dict[str, str], str]] = ()  # memory file systems: place, options, label
        self.unmounted: Sequence[tuple[str, str]] = ()  # places of which what is mounted goes, and labels
        # The image's entrypoint is run once per node: the option that asks for it, and whether its output is shown.
        self.entrypoint: tuple[str, bool] | None = None
        self.speaks = False  # whether the output of what an image runs by itself is shown
        self.notes: Sequence[str] = ()  # what the user is to know
        self.defaults: Sequence[tuple[str, str]] = ()  # records for the plan, behind the image's environment
        self.drop: Sequence[str] = ()  # variables that a job's environment doesn't bring
        self.container_name: ContainerName | None = None
        self.keep: Sequence[str] = ()  # variables of which the job's value counts, not the image's
        # Of an image with this variable in its environment, records for the plan.
        self.if_image_has: tuple[str, Sequence[tuple[str, str]]] = ("", ())
