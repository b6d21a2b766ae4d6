# SPDX-License-Identifier: Apache-2.0
"""What a newcomer does on their first day: the quickstart's commands as they stand there, in a real image of Debian.

MPI's is in test_mpi.py, with that image; how the image is made, in tests/debian_image.py.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm_ch import paths
from slurm_ch.sandbox.cluster import Cluster
from tests import debian_image, documented
from tests.command import CH_RUN
from tests.images.craft import Layout, busybox, item, layer
from tests.images.registry import Registry

TASKS = documented.blocks("docs/quickstart.rst", "task")
README = documented.blocks("README.rst", "task")

APP = """#!/bin/sh
echo "app $* as $SLURM_PROCID of $SLURM_NTASKS on Debian $(cut -d. -f1 /etc/debian_version)"
"""
PLOT = """import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plot
plot.plot([1, 2, 3])
plot.savefig("plot.png")
print(matplotlib.get_cachedir())
"""
SSH = """Host login-node
    ProxyCommand /usr/sbin/sshd -i -f {home}/.ssh/server
    IdentityFile {home}/.ssh/key
    UserKnownHostsFile {home}/.ssh/known
"""
SSHD = """HostKey {home}/.ssh/host
AuthorizedKeysFile {home}/.ssh/key.pub
StrictModes no
UsePAM no
PidFile none
"""

LOST = tuple(f"slurm-ch: n{n}: warning: the working directory" for n in (1, 2))


class Newcomer:
    """A user whose home is their own, and who types."""

    def __init__(self, cluster: Cluster, user: str, home: Path) -> None:
        self.cluster = cluster
        self.user = user
        self.home = home

    def types(self, text: str, directory: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        """Run lines as a shell that stops at the first that fails."""
        settled = {
            **self.cluster.environ(self.user),
            "HOME": str(self.home),
            "PATH": f"{self.home}/bin:/usr/bin:/bin",
            **env,
        }
        return self.cluster.run(
            ["bash", "-ec", text], user=self.user, timeout=180, env=settled, cwd=str(directory or self.home)
        )

    def sees(self, text: str, directory: Path | None = None, **env: str) -> str:
        """Run lines that must succeed with nothing to complain of, and return what they print.

        That the home is not shown, unless asked for, is no complaint.
        """
        done = self.types(text, directory, **env)
        known = ("srun: job ", *LOST)
        said = [line for line in done.stderr.splitlines() if not line.startswith(known)]
        assert (done.returncode, said) == (0, []), (done.stdout, done.stderr)
        return done.stdout

    def scratch(self) -> Path:
        """Return a directory with the image, the program and something to read."""
        place = self.home / "scratch"
        place.mkdir()
        shutil.copy(self.home / "app", place / "app")
        os.link(self.home / "foo.sqfs", place / "foo.sqfs")
        (place / "input").write_text("x")
        self.owns()
        return place

    def owns(self) -> None:
        subprocess.run(["chown", "-hR", f"{self.user}:", self.home], check=True)


@pytest.fixture(scope="module")
def home(user: str) -> Iterator[Path]:
    """The user's home, empty but for the image."""
    image, home = debian_image.make(), Path(pwd.getpwnam(user).pw_dir)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "home", home], check=True)
    try:
        shutil.copy(image, home / "foo.sqfs")
        yield home
    finally:
        subprocess.run(["umount", "--lazy", home], check=True)


@pytest.fixture(scope="module")
def site(home: Path) -> Iterator[Cluster]:
    """A site that has pyxis' options."""
    with Cluster(nodes=2, cpus=8, plugstack_lines=[f"required {paths.PLUGIN} pyxis=yes"]) as running:
        yield running


@pytest.fixture
def me(site: Cluster, user: str, home: Path) -> Iterator[Newcomer]:
    """A newcomer with a program in their home, and our command under ch-run's name."""
    (home / "app").write_text(APP)
    (home / "app").chmod(0o755)
    (home / "bin").mkdir()
    (home / "bin/ch-run").symlink_to(os.path.realpath(CH_RUN))
    newcomer = Newcomer(site, user, home)
    newcomer.owns()
    yield newcomer
    for entry in home.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != "foo.sqfs":
            entry.unlink()


def test_every_task_is_tried() -> None:
    assert set(TASKS) == {"step", "bind", "mpi", "inside", "batch", "venv", "git", "plot", "pyxis", "ch-run"}
    assert set(README) == {"use", "step-batch", "script-batch"}


def test_a_step(me: Newcomer) -> None:
    assert "VERSION_CODENAME=bookworm\n" in me.sees(TASKS["step"])


def test_data(me: Newcomer) -> None:
    scratch = me.scratch()
    out = me.sees(TASKS["bind"].replace("/scratch", str(scratch)), scratch)
    assert sorted(out.splitlines()) == [f"app {scratch}/input as {n} of 8 on Debian 12" for n in range(8)]


def test_looking_around(me: Newcomer) -> None:
    typed = f"script -qec '{TASKS['inside'].strip()}' /dev/null"
    done = me.types(f"printf 'test -t 0 && tty\\nid -un\\nexit 3\\n' | {typed}")
    assert done.returncode == 3
    assert {"/dev/pts/", me.user} <= {re.sub(r"(?<=/dev/pts/)\d+$", "", line) for line in done.stdout.splitlines()}


def batch(me: Newcomer, text: str, **env: str) -> list[str]:
    (me.home / "job.sh").write_text(text)
    me.owns()
    done = me.types("sbatch --wait --output=out job.sh", **env)
    out = (me.home / "out").read_text()
    assert done.returncode == 0, (done, out)
    return sorted(line for line in out.splitlines() if not line.startswith(LOST))


@pytest.mark.parametrize("text", [TASKS["batch"], README["step-batch"]], ids=["quickstart", "README"])
def test_a_batch_script_in_ones_home(me: Newcomer, text: str) -> None:
    assert batch(me, text) == [f"app  as {n} of 8 on Debian 12" for n in range(8)]


def test_a_script_in_the_image(me: Newcomer) -> None:
    """README's: the script and its step are in the image, and the program is the image's own."""
    text = README["script-batch"].replace("srun app", "srun head -n 1 /etc/debian_version")
    assert text != README["script-batch"]
    assert [line.partition(".")[0] for line in batch(me, text)] == ["12"]


LINES = [line.partition("  #")[0].strip() for line in README["use"].splitlines()]


def only(word: str) -> str:
    (line,) = [line for line in LINES if word in line]
    return line


def test_the_readmes_lines(me: Newcomer) -> None:
    """Those that need neither a registry, a GPU nor a terminal."""
    apart = [only(word) for word in ("docker://", "--gpus", "--pty")]
    tried = [line for line in LINES if line not in apart]
    assert only("--pty") == TASKS["inside"].strip()
    scratch = me.scratch()
    out = [
        me.sees(line.replace("/scratch", str(scratch)).replace("foo.sqfs app", "foo.sqfs pwd"), scratch)
        for line in tried
    ]
    assert sorted(out[1].splitlines()) == [f"app {scratch}/input as {n} of 8 on Debian 12" for n in range(8)]
    assert len(out) == 2


def test_the_readmes_image_in_a_registry(me: Newcomer, tmp_path: Path) -> None:
    """The registry is one on loopback that has taken the place of the one that the line means."""
    image = Layout(tmp_path / "layout")
    image.image([busybox(), layer([item("etc/os-release", "VERSION_ID=24.04\n")])])
    registry = Registry(tmp_path / "registry")
    try:
        registry.push(image, "library/ubuntu:24.04")
        conf = me.home / "registries.conf"
        conf.write_text(f'[[registry]]\nprefix = "docker.io"\nlocation = "{registry.host}"\ninsecure = true\n')
        me.owns()
        line, known = only("docker://"), {"CONTAINERS_REGISTRIES_CONF": str(conf)}
        first, second = me.types(line, **known), me.types(line, **known)
        assert [done.stdout for done in (first, second)] == ["VERSION_ID=24.04\n"] * 2, (first, second)
        assert "slurm-ch: pulled in " in first.stderr and "pulled" not in second.stderr
        blobs = [one for one in registry.requests() if one.startswith("GET ") and "/blobs/" in one]
        assert len(blobs) == len(set(blobs)) > 0
    finally:
        registry.stop()


TRAIN = "#!/bin/sh\necho training on $GPU_OF_SPEC, ${CUDA_VISIBLE_DEVICES:-none}, on Debian $(cut -d. -f1 /etc/debian_version)\n"


def test_the_readmes_gpu(user: str, home: Path, tmp_path: Path, world_tmp: Path) -> None:
    """A site whose GPU is no more than a device file and what its vendor's CDI file says; the program is the vendor's."""
    place = world_tmp / "readmes-gpu"
    place.mkdir()
    (place / "train").write_text(TRAIN)
    (place / "train").chmod(0o755)
    mount = {"hostPath": str(place / "train"), "containerPath": "/usr/local/bin/train", "options": ["ro"]}
    edits = {"env": ["GPU_OF_SPEC=gpu0"], "deviceNodes": [{"path": "/dev/zero"}]}
    spec = {
        "cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": [{"name": "all", "containerEdits": edits}],
        "containerEdits": {"mounts": [mount]},
    }  # fmt: skip
    (place / "nvidia.json").write_text(json.dumps(spec))
    with Cluster(
        plugstack_lines=[f"required {paths.PLUGIN} default=cdi-dirs={place}"], node_conf="Gres=gpu:1",
        slurm_conf_extra="GresTypes=gpu\n", files={"gres.conf": "Name=gpu File=/dev/zero\n"},
    ) as site:  # fmt: skip
        done = Newcomer(site, user, home).types(only("--gpus"), PATH="/usr/local/bin:/usr/bin:/bin")
    assert (done.returncode, done.stdout) == (0, "training on gpu0, 0, on Debian 12\n"), done


def test_python_packages(me: Newcomer) -> None:
    package = me.home / "mypackage"
    (package / "mypackage").mkdir(parents=True)
    (package / "mypackage/__main__.py").write_text("import sys; print('in', sys.prefix, sys.version_info[:2])\n")
    (package / "pyproject.toml").write_text('[project]\nname = "mypackage"\nversion = "1"\n')
    me.owns()
    # What builds the package comes from the index, or from a directory where there is none.
    wheels = me.home / "wheels"
    wheels.mkdir()
    with tempfile.TemporaryDirectory() as unpacked:
        subprocess.run(["unsquashfs", "-q", "-n", "-f", "-d", unpacked, me.home / "foo.sqfs", "opt/wheels"], check=True)
        for wheel in sorted(Path(unpacked, "opt/wheels").iterdir()):
            shutil.copy(wheel, wheels)
    out = me.sees(TASKS["venv"], PIP_NO_INDEX="1", PIP_FIND_LINKS=str(wheels), PIP_DISABLE_PIP_VERSION_CHECK="1")
    assert out.splitlines()[-1] == f"in {me.home}/venv (3, 11)"
    # And it is there for the next step.
    assert me.sees("srun --ch-image=foo.sqfs --ch-home venv/bin/python -m mypackage") == out.splitlines()[-1] + "\n"


def test_git_and_ssh(me: Newcomer) -> None:
    """A real ssh to a server that knows the user by their key, with the settings in their home; git over it."""
    ssh, project = me.home / ".ssh", me.home / "project.git"
    ssh.mkdir(mode=0o700)
    for key in ("key", "host"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", ssh / key], check=True)
    (ssh / "config").write_text(SSH.format(home=me.home))
    (ssh / "server").write_text(SSHD.format(home=me.home))
    (ssh / "known").write_text(f"login-node {(ssh / 'host.pub').read_text()}")
    (me.home / ".gitconfig").write_text(
        "[user]\n\tname = New Comer\n\temail = new@example.org\n[init]\n\tdefaultBranch = main\n"
    )
    me.owns()
    me.sees(
        "git init -q --bare project.git; git clone -q project.git first 2>/dev/null; cd first; echo one > notes;"
        " git add notes; git commit -qm one; git push -q"
    )
    text = TASKS["git"].replace("login-node:project", f"login-node:{project} project")
    assert text != TASKS["git"]
    done = me.types(text)
    assert done.returncode == 0, done
    log = me.sees("git --git-dir=project.git log --format='%an %s'")
    assert log.splitlines() == ["New Comer more", "New Comer one"]


def test_plots(me: Newcomer) -> None:
    (me.home / "plot.py").write_text(PLOT)
    me.owns()
    out = me.sees(TASKS["plot"])
    assert (me.home / "plot.png").read_bytes()[:4] == b"\x89PNG"
    # Kept for the next time, and no warning about a home that can't be written to.
    assert out == f"{me.home}/.cache/matplotlib\n"


@pytest.mark.parametrize("task", ["pyxis", "ch-run"])
def test_a_script_of_another_is_moved(me: Newcomer, task: str) -> None:
    """Before and after, with the same result."""
    (me.home / "data").mkdir()
    (me.home / "data/input").write_text("the data\n")
    me.owns()
    before, after = TASKS[task].splitlines()
    assert me.sees(before) == me.sees(after) == "the data\n"
