# SPDX-License-Identifier: Apache-2.0
"""The demo: four tasks of a step in a real SquashFS image, as an ordinary user."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from slurm_ch.sandbox.cluster import Cluster
from tests.small_images import make_image, squash

SHOW = "echo task $SLURM_PROCID of $SLURM_NTASKS: $(id -un), $(readlink /proc/self/ns/user), $(readlink /proc/self/ns/mnt), root $(awk '$5==\"/\" {print $(NF-1)}' /proc/self/mountinfo)"


def main() -> int:
    """Run the demo as the user that the command line names; return its exit status."""
    user = sys.argv[1]
    with tempfile.TemporaryDirectory(prefix="slurm-ch-demo-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        image = squash(make_image(directory / "root"), directory / "demo.sqfs")
        command = ["srun", "--overcommit", "-n4", f"--ch-image={image}", "sh", "-c", SHOW]
        print("$", " ".join(command[:4]), "sh -c '...'", flush=True)
        with Cluster(nodes=1) as cluster:
            done = cluster.run(command, user=user, timeout=60)
        lines = sorted(done.stdout.splitlines())
        print("\n".join(lines))
        print(done.stderr, end="", file=sys.stderr)
        if done.returncode:
            return done.returncode
    pairs = {tuple(line.split(", ")[1:3]) for line in lines}
    if len(lines) != 4 or len(pairs) != 1:
        print("the tasks do not share one pair of namespaces", file=sys.stderr)
        return 1
    print("All four tasks share one user and one mount namespace, in the image, as", user)
    return 0


if __name__ == "__main__":
    sys.exit(main())
