# SPDX-License-Identifier: Apache-2.0
"""A cluster whose virtual nodes have each a disk of its own, which they don't by themselves."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from slurm_ch.sandbox.cluster import Cluster


class OwnDisks(Cluster):
    """A cluster whose nodes have each its own file system, of that size, on the directory `disk`.

    slurmd, and so all jobs, are in a mount namespace with a tmpfs there.
    """

    def __init__(self, disk: Path, sizes: dict[str, str], **kw: Any) -> None:
        super().__init__(nodes=len(sizes), **kw)
        self.disk = disk
        self.sizes = sizes

    def _daemon(self, name: str, argv: list[str]) -> None:
        if name in self.sizes:
            unshare = shutil.which("unshare")
            assert unshare
            mount = f'mount -t tmpfs -o size={self.sizes[name]},mode=1777 disk-of-{name} "$0" && exec "$@"'
            argv = [unshare, "--mount", "sh", "-c", mount, str(self.disk), *argv]
        super()._daemon(name, argv)

    def on_disk(self, node: str, below: str = "") -> list[str]:
        """Return what is on a node's disk."""
        pid = Path(self.directory, "run", f"{node}.pid").read_text().strip()
        return sorted(os.listdir(f"/proc/{pid}/root{self.disk}/{below}"))

    def disks_are_empty(self) -> bool:
        return not any(self.on_disk(node) for node in self.node_names)
