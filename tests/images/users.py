# SPDX-License-Identifier: Apache-2.0
"""An ordinary user of a cluster, who pulls images."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

from slurm_ch.sandbox.cluster import Cluster
from tests.command import WITH_SBATCH_WAIT

from .craft import Layout, busybox, item, layer
from .registry import Registry, registries_conf

TIMEOUT = 60


class User:
    """An ordinary user with a cache of their own, who trusts the plain registry."""

    def __init__(self, cluster: Cluster, name: str, home: Path, plain: Registry) -> None:
        self.cluster = cluster
        self.name = name
        self.home = home
        self.cache = home / "cache"
        conf = registries_conf(home / "registries.conf", plain.host)
        self.env = {
            **cluster.environ(name),
            "HOME": str(home),
            "PATH": "/usr/bin:/bin",
            "SLURM_CH_CACHE": str(self.cache),
            "CONTAINERS_REGISTRIES_CONF": str(conf),
        }

    def sh(self, line: str, **env: str) -> subprocess.CompletedProcess[str]:
        argv = ["bash", "-c", WITH_SBATCH_WAIT + line]
        return self.cluster.run(argv, user=self.name, timeout=TIMEOUT, env={**self.env, **env}, cwd=self.home)

    def good(self, line: str, **env: str) -> str:
        done = self.sh(line, **env)
        assert done.returncode == 0, (done.stdout, done.stderr)
        return done.stdout

    def popen(self, line: str, **kw: Any) -> subprocess.Popen[str]:
        settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": self.env}
        return self.cluster.popen(["bash", "-c", line], user=self.name, cwd=self.home, **{**settings, **kw})

    def images(self) -> list[str]:
        return sorted(path.name for path in (self.cache / "images").glob("*.sqfs"))

    def in_progress(self) -> list[Path]:
        return sorted((self.cache / "tmp").iterdir()) if (self.cache / "tmp").is_dir() else []


def image(tmp_path: Path, marker: str) -> Layout:
    made = Layout(tmp_path / marker)
    made.image([busybox(), layer([item("marker", f"{marker}\n")])], {"Cmd": ["cat", "/marker"]})
    return made


def pulls(registry: Registry, name: str, since: int = 0) -> list[str]:
    """Return what was fetched of an image: blobs, not manifests."""
    return [one for one in registry.requests()[since:] if one.startswith(f"GET /v2/{name}/blobs/")]


def finished(me: User) -> None:
    deadline = time.monotonic() + TIMEOUT
    while me.good("squeue -h --me"):
        assert time.monotonic() < deadline, me.good("squeue --me")
        time.sleep(0.1)
