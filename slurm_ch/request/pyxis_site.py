# SPDX-License-Identifier: Apache-2.0
"""plugstack.conf's arguments about pyxis' options, pyxis' own among them. Loaded only where there is one."""

from __future__ import annotations

from ..errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# How long a container with a name is kept; where commands start; whether the image's entrypoint is run.
_WORDS = {
    "container_scope": ("job", "global"), "container_directory": ("image", "job"), "execute_entrypoint": ("0", "1"),
}  # fmt: skip
# Of pyxis' own, what says nothing here, and what can't be had.
_IDLE = ("sbatch_support=1", "use_squashfuse=1")
_ABSENT = {
    "runtime_path": "nothing of an image is unpacked here; containers= says where named containers are",
    "use_enroot_load": "there is no enroot here; leave it out",
    "use_squashfuse": "images are not unpacked here; leave it out",
    "sbatch_support": "sbatch and salloc always have the options; leave it out",
}


def parse(arguments: Sequence[tuple[str, str]]) -> Mapping[str, str]:
    """Return what those of site.PYXIS_ARGUMENTS say that are given; UsageError names the wrong one."""
    found = {}
    for key, value in arguments:
        wrong = f"plugstack.conf: {key}={value}"
        if key in _ABSENT:
            if f"{key}={value}" not in _IDLE:
                raise UsageError(f"{wrong}: {_ABSENT[key]}")
        elif key in _WORDS and value not in _WORDS[key]:
            raise UsageError(f"{wrong}: neither {' nor '.join(_WORDS[key])}")
        elif key == "containers" and not value.startswith("/"):
            raise UsageError(f"{wrong}: not an absolute path")
        else:
            found[key] = value
    return found


def containers(arguments: Sequence[tuple[str, str]]) -> str | None:
    """Return below which directory containers with a name are; None for the usual one."""
    found = parse(arguments).get("containers")
    return found if found is None else found.rstrip("/")
