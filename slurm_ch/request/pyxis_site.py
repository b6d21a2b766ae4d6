# SPDX-License-Identifier: Apache-2.0
"""plugstack.conf's arguments about pyxis' options, pyxis' own among them. Loaded only where there is one."""

from __future__ import annotations

from ..errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .options import Setting

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


def take(found: dict[str, str], setting: Setting) -> None:
    """Add an argument to those that are `found`; UsageError if it is none, or wrong."""
    key, value = setting.name, setting.value
    if key in _WORDS:
        if value not in _WORDS[key]:
            raise setting.wrong(f"neither {' nor '.join(_WORDS[key])}")
        found[key] = value
    elif key == "containers":
        # Below which directory containers with a name are.
        if not value.startswith("/"):
            raise setting.wrong("not an absolute path")
        found[key] = value.rstrip("/")
    elif f"{key}={value}" not in _IDLE:
        if key in _ABSENT:
            raise setting.wrong(_ABSENT[key])
        raise UsageError(f"plugstack.conf: {key}={value}: unknown argument")
