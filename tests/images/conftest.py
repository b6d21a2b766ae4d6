# SPDX-License-Identifier: Apache-2.0
"""Three registries, an environment in which they are known, and a puller in it."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from slurm_ch import log
from slurm_ch.images import fetch, pull, settings
from slurm_ch.images.progress import Progress
from slurm_ch.sandbox.cluster import Cluster

from .craft import Layout, busybox, item, layer
from .registry import Registry, Slow, make_ca, registries_conf
from .users import User


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Further tries don't wait, and the log is as it was."""
    monkeypatch.setattr(fetch, "RETRIES", (0.0, 0.0, 0.0))
    yield
    log.configure(level=log.WARNING)


@pytest.fixture(scope="session")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca")
    make_ca(path)
    return path


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    registry = Registry(tmp_path_factory.mktemp("plain") / "registry")
    yield registry
    registry.stop()


@pytest.fixture(scope="session")
def secure(tmp_path_factory: pytest.TempPathFactory, ca: Path) -> Iterator[Registry]:
    registry = Registry(tmp_path_factory.mktemp("secure") / "registry", tls=ca)
    yield registry
    registry.stop()


@pytest.fixture(scope="session")
def closed(tmp_path_factory: pytest.TempPathFactory, ca: Path) -> Iterator[Registry]:
    """One with TLS that wants a password."""
    registry = Registry(tmp_path_factory.mktemp("closed") / "registry", tls=ca, password=True)
    yield registry
    registry.stop()


CONFIG = {
    "Env": ["PATH=/bin", "GREETING=hello there", "TWO=a\nb", "QUOTED='q'", "BROKEN"],
    "Entrypoint": ["sh", "-c"],
    "Cmd": ["echo started"],
    "WorkingDir": "/work/here",
    "User": "nobody",
    "Labels": {"org.example.a": "b"},
    "Volumes": {"/data": {}},
}


@pytest.fixture(scope="session")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A small image of two layers in which a shell runs; don't change it."""
    made = Layout(tmp_path_factory.mktemp("layout") / "oci")
    made.image([busybox(), layer([item("marker", "from the registry\n"), item("bin/.wh.hostname")])], CONFIG)
    return made


@pytest.fixture
def env(tmp_path: Path, plain: Registry) -> dict[str, str]:
    """A caller's environment with a home of its own, who trusts the plain registry only."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    conf = registries_conf(tmp_path / "registries.conf", plain.host)
    return {"HOME": str(home), "PATH": os.environ["PATH"], "CONTAINERS_REGISTRIES_CONF": str(conf)}


Make = Callable[..., pull.Puller]


@pytest.fixture
def puller(env: dict[str, str]) -> Make:
    """Return what makes a puller, from site arguments."""

    def make(platform: str | None = None, **arguments: Any) -> pull.Puller:
        pairs = [(name, str(value)) for name, value in arguments.items()]
        return pull.Puller(settings.parse(pairs, env, "someone"), env, Progress(quiet=True), platform)

    return make


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(nodes=2, cpus=8) as running:
        yield running


@pytest.fixture
def home(world_tmp: Path, user: str, request: pytest.FixtureRequest) -> Path:
    path = world_tmp / f"home-{abs(hash(request.node.name))}"
    path.mkdir()
    os.chown(path, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
    return path


@pytest.fixture
def me(cluster: Cluster, user: str, home: Path, plain: Registry) -> User:
    return User(cluster, user, home, plain)


@pytest.fixture
def slow(me: User, layout: Layout, plain: Registry) -> Iterator[Slow]:
    registry = Slow(layout)
    registries_conf(Path(me.env["CONTAINERS_REGISTRIES_CONF"]), plain.host, registry.host)
    yield registry
    registry.stop()
