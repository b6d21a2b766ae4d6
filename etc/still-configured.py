# SPDX-License-Identifier: Apache-2.0
"""Fail if this node's plugstack.conf names a plugin at one of the PATHS, or below it: `still-configured.py PATH...`."""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from slurm_ch import slurm_conf
from slurm_ch.errors import ChError
from slurm_ch.slurm import plugstack


def main() -> int:
    """Return the exit status: 0 if nothing names the plugin."""
    conf = slurm_conf.path(os.environ)
    if conf is None:
        return 0
    try:
        settings = slurm_conf.settings(conf)
        directories = tuple(one for one in settings.get("plugindir", "").split(":") if one)
        found = list(
            plugstack.entries(plugstack.path_of(conf, settings), (*directories, *plugstack.PLUGIN_DIRECTORIES))
        )
    except ChError:
        return 0  # no plugstack.conf, so no line
    ours = {os.path.realpath(path) for path in sys.argv[1:]}
    for entry in found:
        real = os.path.realpath(entry.path)
        if any(real == path or real.startswith(path + "/") for path in ours):
            print(
                f"make uninstall: {entry.where} loads {entry.path}: remove that line first, on every node; "
                "without the file every srun would fail",
                file=sys.stderr,
            )
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
