# SPDX-License-Identifier: Apache-2.0
"""The demo: four tasks of a step in a real SquashFS image, and two in one from a registry, as an ordinary user."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from slurm_ch.sandbox.cluster import Cluster
from tests.images.registry import Registry, registries_conf
from tests.small_images import make_image, squash

SHOW = "echo task $SLURM_PROCID of $SLURM_NTASKS: $(id -un), $(readlink /proc/self/ns/user), $(readlink /proc/self/ns/mnt), root $(awk '$5==\"/\" {print $(NF-1)}' /proc/self/mountinfo)"


def from_registry(cluster: Cluster, user: str, directory: Path, image: Path) -> None:
    """Show a step whose image is in a registry on this machine: pushed, looked up, pulled and run."""
    slurm_ch = str(Path(sys.executable).with_name("slurm-ch"))
    home = directory / "home"
    home.mkdir()
    shutil.chown(home, user)
    registry = Registry(directory / "registry")
    try:
        conf = registries_conf(directory / "registries.conf", registry.host)
        env = {**cluster.environ(user), "HOME": str(home), "CONTAINERS_REGISTRIES_CONF": str(conf)}
        for command in (
            [slurm_ch, "push", str(image), registry.reference("demo:1")],
            ["srun", "-n2", f"--ch-image={registry.reference('demo:1')}", "sh", "-c", "echo task $SLURM_PROCID: /bin has $(ls /bin | wc -l) programs"],
        ):  # fmt: skip
            print("$", " ".join([Path(command[0]).name, *command[1:]]), flush=True)
            done = cluster.run(command, user=user, timeout=60, env=env, cwd="/")
            print(done.stderr + done.stdout, end="", flush=True)
            if done.returncode:
                raise SystemExit(done.returncode)
    finally:
        registry.stop()


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
            if not done.returncode:
                from_registry(cluster, user, directory, image)
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
