# SPDX-License-Identifier: Apache-2.0
"""The cache: concurrent pulls, killed ones, stale locks, what is removed when."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slurm_ch import log
from slurm_ch.errors import ChError
from slurm_ch.images import locks, reference, store
from slurm_ch.images.locks import Lock
from slurm_ch.images.store import Store

from .craft import Layout
from .registry import Registry, registries_conf

DIGEST = "sha256:" + "ab" * 32
OTHER = "sha256:" + "cd" * 32
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cache(tmp_path: Path) -> Store:
    made = Store(str(tmp_path / "cache"))
    made.prepare()
    return made


def put(cache: Store, digest: str, size: int = 1000, age: float = 0) -> str:
    """Publish a file as the image of that digest."""
    with cache.scratch() as scratch:
        file = Path(scratch, "image")
        file.write_bytes(bytes(size))
        path = cache.publish(str(file), digest, {"size": size})
    os.utime(path, (time.time() - age,) * 2)
    return path


PULLER = """
import os, sys
from slurm_ch.images import fetch, pull, reference, settings
from slurm_ch.images.progress import Progress
fetch.RETRIES = (0.0, 0.0, 0.0)
env = dict(os.environ)
sys.stdin.read(1)
one = pull.Puller(settings.parse([], env, "me"), env, Progress(quiet=True))
print(one.get(reference.parse(sys.argv[1]))[1])
"""


def start_puller(name: str, env: dict[str, str], code: str = PULLER) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, name], env={**env, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.row("F12")
def test_many_pull_one_image(plain: Registry, layout: Layout, env: dict[str, str]) -> None:
    """Twelve processes, started together: the registry sees one pull, and all have the same file."""
    name = plain.push(layout, "many:1")
    children = [start_puller(name, env) for _ in range(12)]
    before = len(plain.requests())
    for child in children:
        assert child.stdin is not None
        child.stdin.write("g")
        child.stdin.flush()
    answers = [child.communicate(timeout=120) for child in children]
    assert [child.returncode for child in children] == [0] * 12, answers
    assert len({out for out, _ in answers}) == 1
    fetched = [line for line in plain.requests()[before:] if "/blobs/" in line]
    assert len(fetched) == len(set(fetched)) == 3
    assert list(Path(env["HOME"], ".cache/slurm_ch/lock").iterdir()) == []


HOLDER = PULLER.replace(
    "sys.stdin.read(1)",
    """
from slurm_ch.images import pack
def stand(*args, **more):
    print("holding", flush=True)
    sys.stdin.read()
pack.pack = stand
""",
)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.row("F9")
def test_a_killed_puller(plain: Registry, layout: Layout, env: dict[str, str], number: int) -> None:
    """The next pull on the host sees that it is gone, takes over immediately, and removes what it left."""
    name = plain.push(layout, "killed:1")
    holder = start_puller(name, env, HOLDER)
    assert holder.stdout is not None and holder.stdin is not None
    assert holder.stdout.readline() == "holding\n"
    cache = Path(env["HOME"], ".cache/slurm_ch")
    assert len(list((cache / "lock").iterdir())) == 1 and len(list((cache / "tmp").iterdir())) == 1
    waiter = start_puller(name, env)
    assert waiter.stdin is not None
    waiter.stdin.write("g")
    waiter.stdin.flush()
    holder.send_signal(number)
    holder.wait(30)
    out, err = waiter.communicate(timeout=60)
    assert waiter.returncode == 0 and out.strip().endswith(".sqfs"), err
    assert list((cache / "lock").iterdir()) == []
    start_and_end = start_puller(name, env)
    start_and_end.communicate("g", timeout=60)
    Store(str(cache)).sweep()
    assert list((cache / "tmp").iterdir()) == []
    holder.stdin.close()
    holder.stdout.close()
    holder.stderr.close()  # type: ignore[union-attr]


@pytest.mark.row("F9")
def test_children_end_with_a_killed_puller(
    plain: Registry, layout: Layout, env: dict[str, str], tmp_path: Path
) -> None:
    """The packer of a puller that is killed with -9 doesn't stay."""
    packer = tmp_path / "tar2sqfs"
    packer.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && exec echo 1.2.0\necho $$ > {tmp_path}/pid\nmkfifo {tmp_path}/never\nexec cat {tmp_path}/never\n'
    )
    packer.chmod(0o755)
    code = PULLER.replace("settings.parse([]", f"settings.parse([('packer', {str(packer)!r})]").replace(
        "sys.stdin.read(1)", ""
    )
    name = plain.push(layout, "orphan:1")
    with start_puller(name, env, code) as child:
        deadline = time.monotonic() + 30
        while not (tmp_path / "never").exists():
            assert time.monotonic() < deadline and child.poll() is None
            time.sleep(0.01)
        pidfd = os.pidfd_open(int((tmp_path / "pid").read_text()))
        child.kill()
        import select

        assert select.select([pidfd], [], [], 20)[0], "the packer lives on"
        os.close(pidfd)


@pytest.mark.row("F12", "F14")
def test_the_lock_of_another_host(cache: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the lock's age counts, by the server's clock; a waiting user sees the host and the progress."""
    path = Path(cache.directory, "lock", DIGEST.replace(":", "-"))
    lock = Lock.create(str(path))
    assert lock is not None and Lock.create(str(path)) is None
    record = {"host": "n7", "pid": 1, "start": "1", "where": "x", "progress": "downloaded 3 of 9 MB"}
    path.write_text(json.dumps(record))
    heard: list[str] = []
    now = time.time
    monkeypatch.setattr(locks.time, "sleep", lambda _: os.utime(path, (now() - 61,) * 2) if len(heard) > 2 else None)
    # A clock of ours that is wrong by an hour means nothing.
    monkeypatch.setattr(locks.time, "time", lambda: now() + 3600)
    with cache.making(DIGEST, heard.append) as ours:
        assert ours is not None and ours is not lock
        assert heard == ["n7: downloaded 3 of 9 MB"] * 3
        lock.release()  # the old holder comes back: the lock isn't its own any more
        assert path.exists()
    assert list(path.parent.iterdir()) == []


@pytest.mark.row("F12")
def test_taking_over_what_has_just_been_renewed(cache: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock seemed stale, but was fresh when it was taken: it is put back."""
    path = Path(cache.directory, "lock", DIGEST.replace(":", "-"))
    path.write_text(json.dumps({"host": "n7", "pid": 1, "start": "1", "where": "x"}))
    os.utime(path, (time.time() - 100,) * 2)
    rename = os.rename

    def renewed(source: str, to: str) -> None:
        os.utime(source)
        rename(source, to)

    monkeypatch.setattr(locks.os, "rename", renewed)
    assert cache.locks.holder(path.name) is None and path.exists()
    assert sorted(one.name for one in path.parent.iterdir()) == [path.name]


def test_a_holder_of_this_host(cache: Store) -> None:
    path = Path(cache.directory, "lock", DIGEST.replace(":", "-"))
    alive = locks.identity()
    for record, dead in (
        (alive, False),
        ({**alive, "start": "1"}, True),  # another process has its number
        ({**alive, "pid": 4_000_000}, True),
        ({**alive, "where": "another-boot " + alive["where"].split(" ")[1]}, True),
        ({**alive, "where": alive["where"].split(" ")[0] + " pid:[1]", "pid": 4_000_000}, False),  # not seen from here
        ({**alive, "host": "n7", "pid": 4_000_000}, False),
        ({}, False),
    ):
        path.write_text(json.dumps(record))
        assert (cache.locks.holder(path.name) is None) is dead, record
        assert path.exists() is not dead


def test_who_is_second_uses_the_first_ones(cache: Store) -> None:
    first = put(cache, DIGEST, 1000)
    inode = os.stat(first).st_ino
    assert put(cache, DIGEST, 2000) == first
    assert os.stat(first).st_ino == inode and os.path.getsize(first) == 1000
    with cache.making(DIGEST, lambda _: None) as lock:
        assert lock is None
    with cache.making(DIGEST, lambda _: None, again=True) as lock:
        assert lock is not None


@pytest.mark.parametrize("number", store._NO_LINKS)
@pytest.mark.row("F14")
def test_afile_system_without_hard_links(cache: Store, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def none(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(store.os, "link", none)
    assert os.path.getsize(put(cache, DIGEST, 1000)) == 1000
    put(cache, DIGEST, 2000)
    assert os.path.getsize(cache.find(DIGEST) or "") == 1000


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        made = Store(str(tmp_path / "a/b/cache"))
        made.prepare()
        path = put(made, DIGEST)
        made.names.remember(reference.parse("docker://x"), DIGEST, "linux/amd64", DIGEST)
    finally:
        assert os.umask(before) == umask
    assert os.stat(path).st_mode & 0o777 == 0o444
    for name in ("", "images", "refs", "lock", "tmp"):
        assert os.stat(os.path.join(made.directory, name)).st_mode & 0o777 == 0o700
    known = made.names.recall(reference.parse("docker://x"), "linux/amd64")
    assert known is not None and known.manifest == DIGEST
    assert made.names.recall(reference.parse("docker://x"), "linux/arm64") is None


def test_caches_that_are_not_safe(tmp_path: Path, user: str) -> None:
    place = tmp_path / "cache"
    place.mkdir()
    place.chmod(0o777)
    with pytest.raises(ChError, match=f"others can write to the cache: chmod go-w {place}"):
        Store(str(place)).prepare()
    place.chmod(0o755)
    os.chown(place, pwd.getpwnam(user).pw_uid, -1)
    with pytest.raises(ChError, match=r"the cache belongs to uid \d+, not to you"):
        Store(str(place)).prepare()
    place.rmdir()
    place.write_text("a file")
    with pytest.raises(ChError, match=r"can't write to the cache .* \(SLURM_CH_CACHE=DIR puts it elsewhere\)"):
        Store(str(place)).prepare()


def test_what_another_left_in_a_cache_s_place_is_not_believed(
    tmp_path: Path, user: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """In a directory that all users share: neither their names and images, nor where their link leads."""
    squatted = Store(str(tmp_path / "squatted"))
    squatted.prepare()
    put(squatted, DIGEST)
    name = reference.parse("docker://x")
    squatted.names.remember(name, DIGEST, "linux/amd64", DIGEST)
    assert squatted.names.recall(name, "linux/amd64") is not None
    link = tmp_path / "link"
    link.symlink_to(squatted.directory)
    assert Store(str(link)).find(DIGEST) is not None
    os.lchown(link, pwd.getpwnam(user).pw_uid, -1)
    with pytest.raises(ChError, match="a link of uid"):
        Store(str(link)).prepare()
    assert Store(str(link)).find(DIGEST) is None
    os.chown(squatted.directory, pwd.getpwnam(user).pw_uid, -1)
    assert squatted.find(DIGEST) is None
    assert squatted.names.recall(name, "linux/amd64") is None
    assert "belongs to uid" in capfd.readouterr().err


def test_only_what_pulls_left_is_swept(tmp_path: Path) -> None:
    """A directory that somebody names for the cache may have a tmp/ of its own."""
    cache = Store(str(tmp_path))
    own = tmp_path / "tmp/results"
    own.mkdir(parents=True)
    (tmp_path / "tmp/notes.txt").write_text("mine")
    cache.prepare()
    with cache.scratch(large=False) as scratch:
        left = Path(scratch)
    left.mkdir()
    for path in (own, tmp_path / "tmp/notes.txt", left):
        os.utime(path, (1, 1))
    cache.sweep()
    assert own.is_dir()
    assert (tmp_path / "tmp/notes.txt").exists()
    assert not left.exists()


def test_another_s_image_is_not_used(cache: Store, user: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = put(cache, DIGEST)
    os.chown(path, pwd.getpwnam(user).pw_uid, -1)
    assert cache.find(DIGEST) is None
    assert "belongs to uid" in capfd.readouterr().err


def test_the_site_s_images_come_first(
    tmp_path: Path, cache: Store, user: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Root's files in root's order; not what anybody else could have put there."""
    site = Store(str(tmp_path / "site"))
    os.mkdir(site.directory, 0o755)
    site.prepare()
    theirs, own = put(site, DIGEST), put(cache, DIGEST)
    site.names.remember(reference.parse("docker://theirs"), DIGEST, "linux/amd64", DIGEST)
    assert os.stat(os.path.dirname(theirs)).st_mode & 0o777 == 0o755
    both = Store(cache.directory, (site.directory, "/nonexistent"))
    assert both.find(DIGEST) == theirs
    assert [(one.path, one.site) for one in both.images()] == [(theirs, True), (own, False)]
    assert both.names.by_digest() == {DIGEST: ["docker://docker.io/library/theirs:latest"]}
    known = both.names.recall(reference.parse("docker://theirs"), "linux/amd64")
    assert known is not None and known.digest == DIGEST
    os.chmod(theirs, 0o664)
    assert both.find(DIGEST) == own
    os.chmod(theirs, 0o444)
    os.chown(theirs, pwd.getpwnam(user).pw_uid, -1)
    assert both.find(DIGEST) == own
    assert "the site's images are root's files" in capfd.readouterr().err


def test_records_that_are_damaged(cache: Store) -> None:
    wanted = reference.parse("docker://x")
    cache.names.remember(wanted, DIGEST, "linux/amd64", DIGEST)
    record = next(Path(cache.directory, "refs").iterdir())
    for text in ("", "{", "[]", '{"digest": 5}', '{"digest": "x", "manifests": [], "when": "y"}', "[" * 100_000):
        record.write_text(text)
        assert cache.names.recall(wanted, "linux/amd64") is None and cache.names.by_digest() == {}
    record.write_text(json.dumps({"digest": "../../x", "manifests": {"linux/amd64": "../../x"}, "when": "now"}))
    with pytest.raises(ChError, match="a digest that is not"):
        cache.names.recall(wanted, "linux/amd64")


def test_pruning(cache: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """By age, by size the least recently used first; on NFS nothing of this week; use counts."""
    digests = [f"sha256:{number:064x}" for number in range(5)]
    days = 86400.0
    paths = [put(cache, digest, 1000, age=(5 - number) * 3 * days) for number, digest in enumerate(digests)]
    assert [one.path for one in cache.prune(older=14 * days)] == paths[:1]
    assert cache.prune(limit=4000) == []
    # What is used isn't the oldest any more.
    assert cache.find(digests[1]) == paths[1]
    assert [one.path for one in cache.prune(limit=3000)] == [paths[2]]
    assert [one.path for one in cache.prune(limit=2500, spare=paths[3])] == [paths[4]]
    assert not os.path.exists(paths[4][:-5] + ".json")
    assert store.file_system("/proc") == "proc"
    monkeypatch.setattr(store, "file_system", lambda _: "nfs4")
    os.utime(paths[3], (time.time() - 8 * days,) * 2)
    assert [one.path for one in cache.prune(limit=0)] == [paths[3]]
    assert [one.path for one in cache.images()] == [paths[1]]


@pytest.mark.row("F9")
def test_what_killed_pulls_left(cache: Store) -> None:
    """Files of dead processes of this host go, those of other hosts after a day, those of living processes never."""
    place = Path(cache.directory, "tmp")
    alive = locks.identity()
    for who, owner, age in (
        ("alive", alive, 1e6), ("dead", {**alive, "start": "1"}, 0), ("elsewhere", {**alive, "host": "n7"}, 100), ("forgotten", {**alive, "host": "n7"}, 90_000),
        ("unknown", {}, 100), ("unknown-old", {}, 90_000),
    ):  # fmt: skip
        left = place / f"{who}.1.2.1"
        left.mkdir()
        (left / "owner").write_text(json.dumps(owner))
        os.utime(left, (time.time() - age,) * 2)
    (place / "record.1.2.1.json").touch()
    os.utime(place / "record.1.2.1.json", (time.time() - 90_000,) * 2)
    with cache.scratch():
        cache.sweep()
        assert len(list(place.iterdir())) == 4
    # The oldest is alive: a pull of many hours on a slow line.
    assert sorted(path.name.partition(".")[0] for path in place.iterdir()) == ["alive", "elsewhere", "unknown"]


@pytest.mark.row("F14")
def test_the_cache_can_not_be_written_to(
    plain: Registry, layout: Layout, env: dict[str, str], user: str, world_tmp: Path
) -> None:
    """A user whose cache is read-only: what is in it works with `cached`, a pull says what helps."""
    cache = world_tmp / f"cache-{os.getpid()}"
    cache.mkdir()
    entry = pwd.getpwnam(user)
    os.chown(cache, entry.pw_uid, entry.pw_gid)
    name, other = plain.push(layout, "org/app:1"), plain.push(layout, "org/other:1")
    conf = registries_conf(world_tmp / f"cache-{os.getpid()}.conf", plain.host)
    mine = {**env, "HOME": str(cache), "CONTAINERS_REGISTRIES_CONF": str(conf), "SLURM_CH_CACHE": str(cache)}
    code = PULLER.replace(
        "sys.stdin.read(1)", f"os.setgroups([]); os.setgid({entry.pw_gid}); os.setuid({entry.pw_uid})"
    )

    def pulled(name: str, mode: str = "auto") -> tuple[int | None, str, str]:
        child = start_puller(name, mine, code.replace("(sys.argv[1])", f"(sys.argv[1]), '{mode}'"))
        out, err = child.communicate(timeout=60)
        return child.returncode, out, err

    status, path, err = pulled(name)
    assert status == 0, err
    directories = [cache, *(one for one in cache.iterdir() if one.is_dir())]
    for one in directories:
        one.chmod(0o555)
    assert pulled(name, "cached") == (0, path, "")
    for asked in (name, other):
        status, _, err = pulled(asked)
        assert status == 1 and f"can't write to the cache {cache} (SLURM_CH_CACHE=DIR puts it elsewhere)" in err
    shutil.rmtree(cache)


@pytest.mark.row("F12")
def test_progress_in_the_lock(cache: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(cache.directory, "lock", "x")
    lock = Lock.create(str(path))
    assert lock is not None
    lock.beat("too soon")
    assert json.loads(path.read_text())["progress"] == ""
    monkeypatch.setattr(locks, "_BEAT_SECONDS", 0.0)
    for text in ("a longer text than the next", "short"):
        lock.beat(text)
        assert json.loads(path.read_text())["progress"] == text
    lock.release()
    log.configure(level=log.WARNING)
