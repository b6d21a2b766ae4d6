# SPDX-License-Identifier: Apache-2.0
"""Configless clusters: nodes and login nodes that have slurm.conf and plugstack.conf from the controller."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm_ch import linux, paths
from slurm_ch.sandbox.cluster import Cluster
from tests import leftovers
from tests.command import WITH_SBATCH_WAIT

ROOT = Path(__file__).parents[2]

On = Callable[..., "subprocess.CompletedProcess[str]"]


class Configless(Cluster):
    """A cluster whose slurmd only gets the controller's address; `plugstack` is the controller's."""

    def __init__(self, plugstack: str, included: str = "") -> None:
        extra = f"SlurmctldParameters=enable_configless\nTaskProlog={ROOT}/etc/task-prolog"
        super().__init__(nodes=1, plugstack_lines=[plugstack], slurm_conf_extra=extra)
        self.included = included

    def _prepare(self) -> None:
        super()._prepare()
        # slurm.conf doesn't name plugstack.conf, which is therefore looked up beside it. And nodes
        # keep the file that they get first, so it must be the one for clients too.
        mine = f"PlugStackConfig={self._path('plugstack.conf')}\n"
        self._confs["slurm.conf"] = self._confs["slurm.conf"].replace(mine, "")
        Path(self.conf).write_text(self._confs["slurm.conf"])
        # slurmd uses this socket before it knows of another, so every cluster of the module has it.
        os.makedirs("/run/munge", exist_ok=True)
        if os.path.lexists("/run/munge/munge.socket.2"):
            os.unlink("/run/munge/munge.socket.2")
        os.symlink(self._path("munge/socket"), "/run/munge/munge.socket.2")
        if self.included:
            os.mkdir(self._path("plugstack.conf.d"))
            Path(self._path("plugstack.conf.d/ch.conf")).write_text(self.included)

    def _daemon(self, name: str, argv: list[str]) -> None:
        if os.path.basename(argv[0]).startswith("slurmd"):
            argv = [argv[0], "-D", "--conf-server", f"127.0.0.1:{self._port}", "-N", name]
        super()._daemon(name, argv)

    def on(self, where: str, line: str, user: str, image: Path) -> subprocess.CompletedProcess[str]:
        """Run a line where there is no slurm.conf but what slurmd has (`node`), or none at all (`login`)."""
        env = {**self.environ(user), "IMG": str(image)}
        del env["SLURM_CONF"]
        if where == "login":
            env["SLURM_CONF_SERVER"] = f"127.0.0.1:{self._port}"
        else:
            env["SLURM_CONF"] = self._path("spool/n1/conf-cache/slurm.conf")
        return self.run(["bash", "-c", WITH_SBATCH_WAIT + line], user=user, env=env)


@pytest.fixture(scope="module")
def own_run() -> Iterator[None]:
    """A mount namespace of the module's own: slurmd makes a link in /run/slurm."""
    home, where = os.open("/proc/self/ns/mnt", os.O_RDONLY), os.getcwd()
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE, None)
    linux.mount("tmpfs", "/run", "tmpfs", 0, "mode=755")
    yield
    linux.setns(home)
    os.close(home)
    os.chdir(where)


@pytest.fixture(scope="module")
def configless(own_run: None) -> Iterator[Configless]:
    with Configless(f"required {paths.PLUGIN}") as running:
        yield running


@pytest.mark.parametrize("where", ["node", "login"])
def test_every_command(configless: Configless, user: str, image_sqfs: Path, where: str) -> None:
    assert configless._supervisor is not None
    before = leftovers.Snapshot(configless._supervisor.pid)
    inner = "cat /marker; srun cat /marker"
    for line in (
        "srun -n2 --ch-image=$IMG cat /marker",
        "salloc -Q --ch-image=$IMG sh -c 'srun cat /marker; srun cat /marker'",
        f"sbatch-wait -o $HOME/c.txt --ch-image=$IMG --wrap='{inner}' >&2; cat $HOME/c.txt; rm $HOME/c.txt",
    ):
        assert configless.on(where, line, user, image_sqfs).stdout == "one\n" * 2, line
    done = configless.on(where, "srun --ch-image=$IMG --ch-uid=x true", user, image_sqfs)
    assert done.returncode == 64
    before.wait_until_clean()


def test_the_cache_has_the_plugins_line(configless: Configless) -> None:
    """`slurm-ch doctor` finds it there."""
    cache = Path(configless._path("spool/n1/conf-cache"))
    assert (cache / "plugstack.conf").read_text() == f"required {paths.PLUGIN}\n"


def test_what_plugstack_conf_includes_does_not_get_to_the_node(own_run: None, user: str, image_sqfs: Path) -> None:
    """The controller hands out plugstack.conf alone: the node lacks the plugin, and never runs the command on the host."""
    with Configless("include plugstack.conf.d/*", f"required {paths.PLUGIN}\n") as own:
        assert not os.path.exists(own._path("spool/n1/conf-cache/plugstack.conf.d"))
        env = {**own.environ(user), "IMG": str(image_sqfs)}  # of the controller's own machine, which has all files

        def run(line: str) -> subprocess.CompletedProcess[str]:
            return own.run(["bash", "-c", WITH_SBATCH_WAIT + line], user=user, env=env)

        refusal = "slurm_ch: the plugin is missing on this node; refusing to run on the host"
        done = run("srun --ch-image=$IMG echo on the host")
        assert done.returncode != 0
        assert done.stdout == f"{refusal}\n"
        done = run(
            "sbatch-wait -o $HOME/c.txt --ch-image=$IMG --wrap='echo on the host' >&2; cat $HOME/c.txt; rm $HOME/c.txt"
        )
        lines = done.stdout.splitlines()
        assert refusal in lines
        assert "on the host" not in lines
