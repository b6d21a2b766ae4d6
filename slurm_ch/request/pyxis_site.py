# SPDX-License-Identifier: Apache-2.0
"""Parse plugstack.conf's arguments for pyxis' options; some are pyxis' own. Loaded only if there is one."""

from __future__ import annotations

from ..errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Arguments with a fixed set of values: how long a named container is kept, the directory in which commands start,
# and whether the image's entrypoint is run.
_WORDS = {
    "container_scope": ("job", "global"), "container_directory": ("image", "job"), "execute_entrypoint": ("0", "1"),
}  # fmt: skip
# Arguments of pyxis that are accepted and change nothing, and those that are refused, with the reason.
_IGNORED = ("sbatch_support=1", "use_squashfuse=1")
_REFUSED = {
    "runtime_path": "nothing of an image is unpacked here; containers= says where named containers are",
    "use_enroot_load": "there is no enroot here; leave it out",
    "use_squashfuse": "images are not unpacked here; leave it out",
    "sbatch_support": "sbatch and salloc always have the options; leave it out",
}


def parse(arguments: Sequence[tuple[str, str]]) -> Mapping[str, str]:
    """Return the values of the given arguments, all of them from site.PYXIS_ARGUMENTS; UsageError names a wrong one."""
    found = {}
    for key, value in arguments:
        wrong = f"plugstack.conf: {key}={value}"
        if key in _REFUSED:
            if f"{key}={value}" not in _IGNORED:
                raise UsageError(f"{wrong}: {_REFUSED[key]}")
        elif key in _WORDS and value not in _WORDS[key]:
            raise UsageError(f"{wrong}: neither {' nor '.join(_WORDS[key])}")
        elif key == "containers" and not value.startswith("/"):
            raise UsageError(f"{wrong}: not an absolute path")
        else:
            found[key] = value
    return found


def containers(arguments: Sequence[tuple[str, str]]) -> str | None:
    """Return the site's directory for named containers; None for the default."""
    found = parse(arguments).get("containers")
    return found if found is None else found.rstrip("/")
