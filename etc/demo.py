# SPDX-License-Identifier: Apache-2.0
"""The demo: four tasks of a step in a real SquashFS image, as an ordinary user."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from slurm_ch.sandbox.cluster import Cluster

SHOW = "echo task $SLURM_PROCID of $SLURM_NTASKS: $(id -un), $(readlink /proc/self/ns/user), $(readlink /proc/self/ns/mnt), root $(awk '$5==\"/\" {print $(NF-1)}' /proc/self/mountinfo)"


def make_image(directory: Path) -> Path:
    """Make a SquashFS image of busybox in `directory` and return its path."""
    root = directory / "root"
    for name in ("bin", "dev", "etc", "proc", "root", "sys", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for name in ("sh", "id", "readlink", "awk", "cat", "ls"):
        (root / "bin" / name).symlink_to("busybox")
    for name in ("passwd", "group"):
        (root / "etc" / name).touch()
    image = directory / "demo.sqfs"
    subprocess.run(["mksquashfs", root, image, "-quiet", "-no-progress"], check=True, stdout=subprocess.DEVNULL)
    return image


def main() -> int:
    """Run the demo as the user that the command line names; return its exit status."""
    user = sys.argv[1]
    with tempfile.TemporaryDirectory(prefix="slurm-ch-demo-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        image = make_image(directory)
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
