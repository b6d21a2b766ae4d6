# SPDX-License-Identifier: Apache-2.0
"""From registries and archives to a file in the cache: each row of what may fail."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from slurm_ch.errors import ChError
from slurm_ch.images import fetch, importer, inject, manifest, pack, pull, reference

from . import craft
from .craft import Layout, item
from .registry import PASSWORD, USER, Registry, auth_file

Make = Callable[..., pull.Puller]
parse = reference.parse


def read(sqfs: str | Path, path: str) -> bytes:
    return subprocess.run(["unsquashfs", "-cat", sqfs, path], check=True, capture_output=True).stdout


def names(sqfs: str | Path) -> set[str]:
    text = subprocess.run(["unsquashfs", "-ls", "-d", "", sqfs], check=True, capture_output=True, text=True).stdout
    return set(text.splitlines())


def nothing_left(puller: pull.Puller) -> None:
    for name in ("tmp", "lock"):
        place = Path(puller.store.directory, name)
        assert not place.exists() or list(place.iterdir()) == []


def refused(puller: pull.Puller, text: str, words: str, mode: str = pull.AUTO) -> str:
    with pytest.raises(ChError, match=words) as caught:
        puller.get(parse(text), mode)
    nothing_left(puller)
    assert [one.path for one in puller.store.images() if not one.site] == []
    return str(caught.value)


def test_from_a_registry(plain: Registry, layout: Layout, puller: Make) -> None:
    """Pulled once, and found by tag, digest and both; the image is what the layers and the configuration say."""
    name = plain.push(layout, "org/app:1")
    one = puller()
    resolved, path = one.get(parse(name))
    assert resolved.pinned == f"{name}@{resolved.digest}"
    assert path == f"{one.store.directory}/images/{resolved.digest.replace(':', '-')}.sqfs"
    nothing_left(one)
    before = len(plain.requests())
    assert one.get(parse(name))[1] == path
    assert [line for line in plain.requests()[before:] if "/blobs/" in line] == []
    before = len(plain.requests())
    for text, mode in ((resolved.pinned, pull.AUTO), (name, pull.CACHED), (resolved.pinned, pull.NEVER)):
        assert puller().get(parse(text), mode)[1] == path
    assert plain.requests()[before:] == []
    assert read(path, "marker") == b"from the registry\n"
    there = names(path)
    assert "/bin/hostname" not in there and "/bin/echo" in there
    assert {
        "/dev",
        "/proc",
        "/sys",
        "/tmp",
        "/root",
        "/home",
        "/mnt",
        "/work/here",
        "/data",
        "/etc/resolv.conf",
        "/etc/group",
    } <= there
    assert read(path, "ch/environment") == b"PATH=/bin\nGREETING=hello there\nQUOTED=''q''\n"
    assert read(path, "ch/environment0") == b"PATH=/bin\0GREETING=hello there\0TWO=a\nb\0QUOTED=''q''\0"
    assert read(path, "ch/entrypoint") == b"angi\0\0\0\2sh\0\0\0\2-c"
    assert read(path, "ch/cmd") == b"angi\0\0\0\x0cecho started"
    said = json.loads(read(path, "ch/metadata.json"))
    assert said["cwd"] == "/work/here" and said["labels"] == {"org.example.a": "b"} and said["volumes"] == ["/data"]
    assert said["reference"] == name and said["digest"] == resolved.digest and said["env"]["TWO"] == "a\nb"
    info = one.store.info(path)
    assert (
        info["size"] == os.path.getsize(path)
        and info["inodes"] == len(there)
        and info["platform"] == manifest.this_platform()
    )
    assert os.stat(path).st_mode & 0o777 == 0o444
    assert os.stat(one.store.directory).st_mode & 0o777 == 0o700


def test_compressions_and_docker_s_own_form(plain: Registry, puller: Make, tmp_path: Path) -> None:
    """gzip, zstd and none; schema 2, whose configuration skopeo writes anew."""
    layout = Layout(tmp_path / "oci")
    layers = [craft.layer([item(name, name)]) for name in "abc"]
    layout.image(layers, {"Env": ["A=b"]}, compression=["gzip", "zstd", "plain"])
    layout.image(layers, {"Env": ["A=b"]}, name="docker")
    for name in (plain.push(layout, "mixed:1"), plain.push(layout, "mixed:2", "docker", "--format", "v2s2")):
        _, path = puller().get(parse(name))
        assert {"/a", "/b", "/c"} <= names(path) and read(path, "ch/environment") == b"A=b\n"
    assert b"docker.distribution" in plain.get("/v2/mixed/manifests/2")


@pytest.mark.parametrize("kind", ["oci", "oci named", "oci-archive", "docker-archive", "dir"])
def test_from_this_host(layout: Layout, puller: Make, tmp_path: Path, kind: str) -> None:
    """Archives as `podman save` and `docker save` write them, and layouts, which are read where they are."""
    text = f"{kind}:{tmp_path}/copy"
    if kind.startswith("oci") and kind != "oci-archive":
        text = f"{layout}:image" if kind == "oci named" else str(layout)
    else:
        argv = [
            "skopeo",
            "--insecure-policy",
            "copy",
            "-q",
            f"{layout}:image",
            text + (":app:1" if kind == "docker-archive" else ""),
        ]
        subprocess.run(argv, check=True, capture_output=True)
    one = puller()
    resolved, path = one.get(parse(text))
    assert read(path, "marker") == b"from the registry\n" and read(path, "ch/cmd").endswith(b"echo started")
    nothing_left(one)
    assert one.get(parse(text))[1] == path and one.get(parse(text), pull.CACHED)[1] == path
    assert resolved.pinned == parse(text).text


def test_from_containers_storage(layout: Layout, puller: Make, env: dict[str, str], tmp_path: Path) -> None:
    env["CONTAINERS_STORAGE_CONF"] = str(tmp_path / "storage.conf")
    (tmp_path / "storage.conf").write_text(
        f'[storage]\ndriver = "vfs"\ngraphroot = "{tmp_path}/graph"\nrunroot = "{tmp_path}/run"\n'
    )
    argv = ["skopeo", "--insecure-policy", "copy", "-q", f"{layout}:image", "containers-storage:localhost/app:1"]
    subprocess.run(argv, check=True, capture_output=True, env={**os.environ, **env})
    _, path = puller().get(parse("containers-storage:localhost/app:1"))
    assert read(path, "marker") == b"from the registry\n"


def test_from_a_docker_daemon(puller: Make, env: dict[str, str], tmp_path: Path) -> None:
    env["DOCKER_HOST"] = f"unix://{tmp_path}/docker.sock"
    words = refused(puller(), "docker-daemon:app:1", "docker-daemon:app:1: ")
    assert "docker.sock" in words


def test_with_tls_and_a_ca_of_its_own(
    secure: Registry, layout: Layout, puller: Make, env: dict[str, str], ca: Path
) -> None:
    name = secure.push(layout, "app:1")
    words = refused(puller(), name, "nobody known vouches for the certificate")
    assert f"/etc/containers/certs.d/{secure.host}/ca.crt" in words and "SSL_CERT_FILE" in words
    env["SSL_CERT_FILE"] = str(ca / "ca.crt")
    assert read(puller().get(parse(name))[1], "marker")
    del env["SSL_CERT_FILE"]
    place = Path(env["HOME"], ".config/containers/certs.d", secure.host)
    place.mkdir(parents=True)
    shutil.copy(ca / "ca.crt", place)
    assert puller().resolve(parse(name)).digest


def test_with_a_password(
    closed: Registry, layout: Layout, puller: Make, env: dict[str, str], ca: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """No credentials, wrong ones, none for that image: one message. Then by each of skopeo's files."""
    env["SSL_CERT_FILE"] = str(ca / "ca.crt")
    name = closed.push(layout, "private/app:1")
    words = refused(puller(), name, "not there, or you may not read it; `slurm-ch login 127")
    assert (
        f"no credentials in /run/containers/{os.getuid()}/auth.json, {env['HOME']}/.config/containers/auth.json, {env['HOME']}/.docker/config.json"
        in words
    )
    env["SLURM_JOB_ID"] = "1"
    assert "what podman keeps in /run/user is not seen in jobs" in refused(puller(), name, "not there")
    del env["SLURM_JOB_ID"]
    auth = auth_file(Path(env["HOME"], ".config/containers/auth.json"), closed.host, "wrong")
    assert f"credentials are in {auth}" in refused(puller(), name, "not there, or you may not read it")
    for path in (auth, Path(env["HOME"], ".docker/config.json"), Path(env["HOME"], "elsewhere.json")):
        auth.unlink(missing_ok=True)
        auth_file(path, closed.host)
        if path.name == "elsewhere.json":
            env["REGISTRY_AUTH_FILE"] = str(path)
        assert puller().resolve(parse(name)).digest
        path.unlink()
    auth_file(Path(env["REGISTRY_AUTH_FILE"]), closed.host).chmod(0o644)
    capfd.readouterr()
    assert read(puller().get(parse(name))[1], "marker")
    assert "others can read your credentials" in capfd.readouterr().err


def test_a_credential_helper(
    closed: Registry, layout: Layout, puller: Make, env: dict[str, str], ca: Path, tmp_path: Path
) -> None:
    env["SSL_CERT_FILE"] = str(ca / "ca.crt")
    name = closed.push(layout, "private/app:1")
    helper = tmp_path / "bin/docker-credential-test"
    helper.parent.mkdir()
    helper.write_text(f'#!/bin/sh\nprintf \'{{"Username":"{USER}","Secret":"{PASSWORD}"}}\'\n')
    helper.chmod(0o755)
    env["PATH"] = f"{helper.parent}:{env['PATH']}"
    config = Path(env["HOME"], ".docker/config.json")
    config.parent.mkdir()
    config.write_text(json.dumps({"credHelpers": {closed.host: "test"}}))
    assert puller().resolve(parse(name)).digest


def test_no_secret_anywhere(closed: Registry, layout: Layout, puller: Make, env: dict[str, str], ca: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    """Not in a child's arguments or environment, in the log at its most talkative, in the cache, in the image."""
    from slurm_ch import log
    from slurm_ch.images import children

    seen: list[str] = []
    start = children.start

    def watched(argv, env, **more):  # type: ignore[no-untyped-def]
        seen.append(repr([argv, env]))
        return start(argv, env, **more)

    monkeypatch.setattr(children, "start", watched)
    env["SSL_CERT_FILE"] = str(ca / "ca.crt")
    env["SECRET_OF_MINE"] = PASSWORD
    auth = auth_file(Path(env["HOME"], ".config/containers/auth.json"), closed.host)
    coded = json.loads(auth.read_text())["auths"][closed.host]["auth"]
    log.configure(level=log.DEBUG)
    name = closed.push(layout, "private/secret:1")
    puller().get(parse(name))
    with pytest.raises(ChError):
        puller().get(parse(name.replace("secret", "other")))
    assert len(seen) >= 4
    found = capfd.readouterr()
    texts = [*seen, found.out, found.err]
    cache = Path(env["HOME"], ".cache")
    texts += [path.read_bytes().decode("latin-1") for path in cache.rglob("*") if path.is_file()]
    assert not any(PASSWORD in text or coded in text for text in texts)


def test_plain_http_is_only_for_those_named(plain: Registry, layout: Layout, puller: Make, env: dict[str, str]) -> None:
    name = plain.push(layout, "org/app:1")
    del env["CONTAINERS_REGISTRIES_CONF"]
    assert "insecure = true" in refused(puller(), name, "speaks HTTP, not HTTPS")


def test_not_there(plain: Registry, layout: Layout, puller: Make, tmp_path: Path) -> None:
    plain.push(layout, "org/app:1")
    for name in ("org/app:2", "nobody/nothing:1", f"org/app@sha256:{'0' * 64}"):
        refused(puller(), plain.reference(name), f"not there, or you may not read it; `slurm-ch login {plain.host}`")
    for text in (
        f"oci:{tmp_path}/none",
        f"oci-archive:{tmp_path}/none",
        f"docker-archive:{tmp_path}/none",
        f"dir:{tmp_path}/none",
    ):
        refused(puller(), text, "none.*: (not there|can't read)")
    refused(puller(), f"{layout}:other", "no image of that name in the layout")


def test_a_registry_that_is_down(
    plain: Registry,
    layout: Layout,
    puller: Make,
    env: dict[str, str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Three more tries; then an error, which tells of the image that is there, and never takes it by itself."""
    down = Registry(tmp_path / "down")
    try:
        with open(env["CONTAINERS_REGISTRIES_CONF"], "a") as file:
            file.write(f'[[registry]]\nlocation = "{down.host}"\ninsecure = true\n')
        name = down.push(layout, "app:1")
        _, path = puller().get(parse(name))
    finally:
        down.stop()
    capfd.readouterr()
    with pytest.raises(
        fetch.Unreachable, match=r"can't be reached: .*connection refused; --pull=cached uses the image of \d{4}-"
    ):
        puller().get(parse(name))
    assert capfd.readouterr().err.count("trying again") == 3
    assert puller().get(parse(name), pull.CACHED)[1] == path
    with pytest.raises(ChError, match="app:2: never pulled here"):
        puller().get(parse(down.reference("app:2")), pull.CACHED)
    with pytest.raises(fetch.Unreachable, match="no such host|server misbehaving|can't be reached"):
        puller().get(parse("docker://no-such-host.invalid/app"))


Answer = tuple[int, dict[str, str], bytes]


@contextmanager
def stub(answer: Callable[[str, int], Answer | None]) -> Iterator[tuple[str, list[str]]]:
    """A registry whose answers to GET are `answer(path, how many so far)`; None closes the connection."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            found = (200, {}, b"{}") if self.path == "/v2/" else answer(self.path, seen.count(self.path))
            if found is None:
                self.close_connection = True
                return
            status, headers, body = found
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            if "Content-Length" not in headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def blobs(layout: Layout) -> dict[str, bytes]:
    return {"sha256:" + path.name: path.read_bytes() for path in (layout.path / "blobs/sha256").iterdir()}


def served(layout: Layout, path: str) -> Answer:
    """Return what a good registry answers: any tag is the layout's first image."""
    wanted = path.rpartition("/")[2]
    wanted = wanted if ":" in wanted else layout.manifests[0]["digest"]
    data = blobs(layout).get(wanted)
    if data is None:
        return 404, {}, b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}'
    return 200, {"Content-Type": craft.MANIFEST, "Docker-Content-Digest": wanted}, data


@contextmanager
def trusted(env: dict[str, str], answer: Callable[[str, int], Answer | None]) -> Iterator[tuple[str, list[str]]]:
    with stub(answer) as (host, seen):
        with open(env["CONTAINERS_REGISTRIES_CONF"], "a") as file:
            file.write(f'[[registry]]\nlocation = "{host}"\ninsecure = true\n')
        yield f"docker://{host}/app:1", seen


def test_a_registry_that_comes_back(layout: Layout, puller: Make, env: dict[str, str]) -> None:
    """503 twice, then all is well."""
    with trusted(
        env, lambda path, count: (503, {}, b"busy") if "/manifests/1" in path and count < 3 else served(layout, path)
    ) as (name, seen):
        assert read(puller().get(parse(name))[1], "marker")
        assert seen.count("/v2/app/manifests/1") == 3


def test_a_registry_that_stays_broken(puller: Make, env: dict[str, str]) -> None:
    with trusted(env, lambda _path, _count: (500, {}, b"broken")) as (name, seen):
        refused(puller(), name, "can't be reached: .*500")
        assert len([path for path in seen if "manifests" in path]) == 4


def test_too_many_requests(puller: Make, env: dict[str, str]) -> None:
    body = b'{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit"}]}'
    with trusted(env, lambda _path, _count: (429, {"Retry-After": "0"}, body)) as (name, seen):
        refused(puller(), name, "limits how much may be pulled: `slurm-ch login 127.*mirror")
        assert 3 <= len([path for path in seen if "manifests" in path]) <= 6  # skopeo's own


def test_a_blob_that_ends_too_soon(layout: Layout, puller: Make, env: dict[str, str]) -> None:
    """Once: it is fetched again; always: an error, and nothing in the cache."""

    def short(path: str) -> Answer:
        status, headers, data = served(layout, path)
        return status, {**headers, "Content-Length": str(len(data))}, data[: len(data) // 2]

    for always in (True, False):
        with trusted(
            env,
            lambda path, count, always=always: (
                short(path) if "/blobs/" in path and (always or count == 1) else served(layout, path)
            ),
        ) as (name, _):  # type: ignore[misc]
            if always:
                refused(puller(), name, "can't be reached: .*EOF")
            else:
                assert read(puller().get(parse(name))[1], "marker")


def test_a_registry_that_lies(layout: Layout, puller: Make, env: dict[str, str]) -> None:
    """Another blob, another manifest than the digest says; no manifest at all; a page of HTML."""

    def other(path: str, _count: int) -> Answer:
        status, headers, data = served(layout, path)
        return status, headers, bytes(len(data)) if "/blobs/" in path else data

    with trusted(env, other) as (name, _):
        refused(puller(), name, "damaged: ")
    tampered = json.dumps({**json.loads(served(layout, "/1")[2]), "annotations": {"x": "y"}}).encode()
    for data, words in ((tampered, "digest"), (b"<html>", "app:1@sha256")):
        with trusted(env, lambda _path, _count, data=data: (200, {"Content-Type": craft.MANIFEST}, data)) as (name, _):  # type: ignore[misc]
            refused(puller(), f"{name}@{layout.manifests[0]['digest']}", words)
    with trusted(env, lambda _path, _count: (200, {"Content-Type": "text/html"}, b"<html>")) as (name, _):
        refused(puller(), name, "app:1: ")


def test_a_registry_that_is_silent(puller: Make, env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()

    def wait(_path: str, _count: int) -> None:
        gate.wait(60)

    monkeypatch.setattr(fetch, "RESOLVE_SECONDS", 0.5)
    monkeypatch.setattr(fetch, "RETRIES", ())
    with trusted(env, wait) as (name, _):
        try:
            refused(puller(), name, "no answer for")
        finally:
            gate.set()


def test_a_download_that_stalls(
    layout: Layout, puller: Make, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()

    def wait(path: str, _count: int) -> Answer | None:
        if "/blobs/" in path:
            gate.wait(60)
            return None
        return served(layout, path)

    monkeypatch.setattr(fetch, "STALL_SECONDS", 0.5)
    monkeypatch.setattr(fetch, "RETRIES", ())
    with trusted(env, wait) as (name, _):
        try:
            refused(puller(), name, "no answer for")
            # The site's own limit counts as well.
            monkeypatch.setattr(fetch, "STALL_SECONDS", 600)
            refused(puller(pull_timeout="1s"), name, r"not done after 1 s \(the site's pull_timeout\)")
        finally:
            gate.set()


def test_images_for_other_machines(
    plain: Registry, puller: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    layout = Layout(tmp_path / "oci")
    for name in ("amd64", "arm64"):
        layout.image(
            [craft.layer([item("arch", name)])], architecture=name, platform={"os": "linux", "architecture": name}
        )
    index = layout.index()
    name = plain.push(layout, "multi:1", "index")
    for platform in ("linux/amd64", "linux/arm64"):
        resolved, path = puller(platform).get(parse(name))
        assert read(path, "arch").decode() in platform and resolved.digest == index != resolved.manifest
        # The index is what is pinned: it is good for nodes of any kind.
        assert puller(platform).get(parse(resolved.pinned), pull.CACHED)[1] == path
        assert read(puller(platform).get(parse(f"{layout}:index"))[1], "arch").decode() in platform
    for text in (name, f"{layout}:index"):
        with pytest.raises(ChError, match="no image for linux/riscv64; there are: linux/amd64, linux/arm64"):
            puller("linux/riscv64").get(parse(text))
    archive = f"oci-archive:{tmp_path}/a.tar"
    subprocess.run(
        ["skopeo", "--insecure-policy", "copy", "-q", "--all", f"{layout}:index", archive],
        check=True,
        capture_output=True,
    )
    assert read(puller("linux/arm64").get(parse(archive))[1], "arch") == b"arm64"
    single = Layout(tmp_path / "single")
    single.image([craft.layer([item("a", "a")])], architecture="sparc64")
    with pytest.raises(ChError, match="no image for linux/amd64: there is one for linux/sparc64 only"):
        puller("linux/amd64").get(parse(str(single)))
    capfd.readouterr()
    puller().get(parse(str(single)))
    assert "the image says that it is for linux/sparc64" in capfd.readouterr().err


def test_what_is_no_image(puller: Make, tmp_path: Path) -> None:
    """In a layout of this host, where nobody has looked before: each is refused, nothing is published."""

    def made(name: str) -> Layout:
        return Layout(tmp_path / name)

    data, _ = craft.COMPRESSIONS["gzip"](craft.layer([item("a", "a" * 5000)]))
    config = {"mediaType": craft.CONFIG}
    for name, media, words in (
        ("encrypted", craft.LAYER + "+gzip+encrypted", "layer 1 is encrypted"),
        ("foreign", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "a foreign layer"),
    ):
        layout = made(name)
        layout.manifest({**config, **layout.json({})}, [{"mediaType": media, **layout.blob(data)}])
        refused(puller(), str(layout), words)
    layout = made("schema 1")
    layout.add({"mediaType": craft.MANIFEST, **layout.json({"schemaVersion": 1, "fsLayers": []})}, "image")
    refused(puller(), f"{layout}", "schema 1")
    for name, change, words in (
        ("truncated", lambda blob: blob[:-20], "layer 1 of 1: (truncated|damaged)"),
        (
            "changed",
            lambda blob: gzip.compress(craft.layer([item("b", "b" * 5000)])),
            "its digest is sha256:.* damaged or changed",
        ),
        ("not a layer", lambda blob: b"#!/bin/sh\n" * 200, "not a tar archive"),
        ("hostile", lambda blob: gzip.compress(craft.layer([item("../../escaped", "x")])), r"a name with \.\. in it"),
    ):
        layout = made(name)
        described = layout.blob(data)
        layout.manifest({**config, **layout.json({})}, [{"mediaType": craft.LAYER + "+gzip", **described}])
        (layout.path / "blobs/sha256" / described["digest"][7:]).write_bytes(change(data))
        refused(puller(), str(layout), words)
    layout = made("config")
    layout.manifest({**config, **layout.blob(b"not JSON")}, [{"mediaType": craft.LAYER + "+gzip", **layout.blob(data)}])
    refused(puller(), str(layout), "its configuration is not JSON")
    layout = made("changed manifest")
    digest = layout.image([craft.layer([item("a", "a")])])
    (layout.path / "blobs/sha256" / digest[7:]).write_text("{}")
    refused(puller(), str(layout), "damaged: the manifest is not sha256:")
    (layout.path / "index.json").write_text('{"schemaVersion": 2, "layers": [], "config": {}}')
    refused(puller(), str(layout), "changed manifest: the manifest is wrong")


def test_without_the_programs(
    plain: Registry, layout: Layout, puller: Make, env: dict[str, str], tmp_path: Path
) -> None:
    """Each is named, and its package; what is in the cache works without them."""
    name = plain.push(layout, "org/app:1")
    programs = {
        "skopeo": "install the package skopeo",
        "tar2sqfs": "install squashfs-tools-ng, or squashfs-tools 4.6 or later",
    }
    whole = env["PATH"]
    for missing, words in programs.items():
        env["PATH"] = str(tmp_path / missing)
        Path(env["PATH"]).mkdir()
        for program in programs:
            if program != missing:
                os.symlink(shutil.which(program, path=whole) or "", tmp_path / missing / program)
        refused(puller(), name, words)
    env["PATH"] = whole
    resolved, path = puller().get(parse(name))
    env["PATH"] = "/nonexistent"
    assert puller().get(parse(name), pull.CACHED)[1] == path
    assert puller().get(parse(resolved.pinned))[1] == path


def fake_packer(directory: Path, name: str, script: str) -> str:
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_a_packer_that_fails(layout: Layout, puller: Make, tmp_path: Path) -> None:
    """With a status, by a signal, silently short of files, for want of room: nothing is published."""
    real = shutil.which("tar2sqfs")
    version = '[ "$1" = --version ] && { echo "tar2sqfs 1.2.0"; exit; }\nfor out; do :; done\n'
    for script, words in (
        ("cat > /dev/null; echo 'no good: x' >&2; exit 3", "tar2sqfs failed with status 3: no good: x"),
        ("exit 4", "tar2sqfs failed with status 4: it gives no reason"),
        ("kill -9 $$", "tar2sqfs was killed by signal 9: out of memory"),
        ("cat > /dev/null; echo 'write: No space left on device' >&2; exit 1", "no room for the image .*prune"),
        (
            f'head -c 20480 | {real} -q -f -c zstd "$out" 2> /dev/null; cat > /dev/null',
            "(not a SquashFS|can't read|has .* inodes, not)",
        ),
        ('cat > /dev/null; printf hsqs > "$out"', "not a SquashFS file"),
        (f'{real} -q -f -c zstd "$out" && truncate -s 5000 "$out"', "a SquashFS file that is truncated: 5000 of"),
        (f'tar -cC /var/empty -f - . 2>/dev/null | {real} -q -f -c zstd "$out"; cat > /dev/null', "has .* inodes, not"),
    ):
        refused(puller(packer=fake_packer(tmp_path / "bin", "tar2sqfs", version + script)), str(layout), words)


def test_which_packer(tmp_path: Path) -> None:
    """tar2sqfs, else mksquashfs, but only one that reads archives as they are."""
    both = tmp_path / "both"
    fake_packer(both, "mksquashfs", "echo 'mksquashfs version 4.6.1 (2023/03/25)'")
    assert pack.find(path=str(both)).version == "4.6.1"
    argv = pack.find(path=str(both)).argv("out", 3)
    assert argv[1:3] == ["-", "out"] and {"-tar", "-exit-on-error", "-root-mode", "-Xcompression-level"} <= set(argv)
    fake_packer(both, "tar2sqfs", "echo 'tar2sqfs (squashfs-tools-ng) 1.3.2'")
    assert pack.find(path=str(both)).name == "tar2sqfs"
    assert pack.find("mksquashfs", str(both)).name == "mksquashfs"
    old = tmp_path / "old"
    fake_packer(old, "mksquashfs", "echo 'mksquashfs version 4.5.1 (2022/03/17)'; exit 1")
    with pytest.raises(ChError, match=r"no tar2sqfs, .*mksquashfs is 4\.5\.1, too old to read archives"):
        pack.find(path=str(old))
    with pytest.raises(ChError, match="packer=gzip: neither"):
        pack.find("gzip")


def test_a_full_disk(layout: Layout, puller: Make, plain: Registry, env: dict[str, str], tmp_path: Path) -> None:
    """A file system that is too small is noticed before the download; one that fills up, in the middle."""
    name = plain.push(layout, "org/app:1")
    small = tmp_path / "small"
    small.mkdir()
    for size, text in (("600k", name), ("700k", str(layout))):
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", small], check=True)
        try:
            env["SLURM_CH_CACHE"] = f"{small}/cache"
            refused(
                puller(), text, f"{small}/cache/tmp.*: no room for the image .disk or quota full.: `slurm-ch prune`"
            )
        finally:
            subprocess.run(["umount", small], check=True)


def test_blobs_on_the_local_disk(
    plain: Registry, layout: Layout, puller: Make, env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TMPDIR has the download where it has room; without, the cache does. Nothing stays in either."""
    name = plain.push(layout, "org/app:1")
    seen: list[str] = []
    copy = fetch.Skopeo.copy
    monkeypatch.setattr(
        fetch.Skopeo,
        "copy",
        lambda self, ref, digest, to, *more: (seen.append(to), copy(self, ref, digest, to, *more))[1],
    )
    local = tmp_path / "local"
    local.mkdir()
    env["TMPDIR"] = str(local)
    one = puller()
    one.get(parse(name))
    assert seen[-1].startswith(f"{local}/slurm_ch.") and list(local.iterdir()) == []
    monkeypatch.setattr(pull, "_free", lambda path: 0 if path == str(local) else 1 << 40)
    one.get(parse(name), pull.ALWAYS)
    assert seen[-1].startswith(one.store.directory) and list(local.iterdir()) == []
    nothing_left(one)


def test_modes(plain: Registry, layout: Layout, puller: Make, tmp_path: Path) -> None:
    name = plain.push(layout, "modes:1")
    refused(puller(), name, "never pulled here", pull.CACHED)
    refused(puller(), name, "not in .*slurm-ch pull docker://", pull.NEVER)
    refused(puller(pull="no", images="/site"), name, r"this site allows no pulls, only its own images \(/site\)")
    refused(puller(registries="docker.io"), name, "not one of this site's registries: docker.io")
    _, path = puller().get(parse(name))
    os.chmod(path, 0o644)
    with open(path, "r+b") as file:
        file.truncate(100)
    assert puller().get(parse(name))[1] == path and os.path.getsize(path) == 100
    # What was damaged is mended.
    assert puller().get(parse(name), pull.ALWAYS)[1] == path and pack.check(path) > 1000
    # The tag means another image now.
    other = Layout(tmp_path / "other")
    other.image([craft.layer([item("marker", "another\n")])])
    plain.push(other, "modes:1")
    assert read(puller().get(parse(name), pull.CACHED)[1], "marker") == b"from the registry\n"
    with pytest.raises(ChError, match="not in"):
        puller().get(parse(name), pull.NEVER)
    assert read(puller().get(parse(name))[1], "marker") == b"another\n"
    assert read(puller().get(parse(name), pull.CACHED)[1], "marker") == b"another\n"


def test_an_image_that_was_removed_is_pulled_again(plain: Registry, layout: Layout, puller: Make) -> None:
    """By the digest that was pinned, whatever the tag means now; gone from the registry, an error names it."""
    name = plain.push(layout, "pinned:1")
    resolved, path = puller().get(parse(name))
    os.unlink(path)
    plain.push(layout, "pinned:1", "image", "--format", "v2s2")
    assert puller().get(parse(resolved.pinned))[1] == path
    os.unlink(path)
    subprocess.run(
        ["skopeo", "delete", "--tls-verify=false", f"{name.rpartition(':')[0]}@{resolved.digest}"],
        check=True,
        capture_output=True,
    )
    refused(puller(), resolved.pinned, f"{resolved.digest}: not there")


def test_to_a_file(plain: Registry, layout: Layout, puller: Make, tmp_path: Path) -> None:
    """Made in its place as a whole, without the cache; from the cache where it is there."""
    name = plain.push(layout, "org/app:1")
    out = tmp_path / "out.sqfs"
    out.write_text("before")
    one = puller()
    with pytest.raises(ChError, match="not there"):
        one.to_file(parse(plain.reference("no/such:1")), str(out))
    assert out.read_text() == "before"
    one.to_file(parse(name), str(out))
    assert read(out, "marker") and one.store.images() == []
    one.get(parse(name))
    before = len(plain.requests())
    one.to_file(parse(name), str(tmp_path / "second.sqfs"))
    assert [line for line in plain.requests()[before:] if "/blobs/" in line] == []
    assert (tmp_path / "second.sqfs").read_bytes() == out.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir() if "sqfs" in path.name) == ["out.sqfs", "second.sqfs"]
    nothing_left(one)
    with pytest.raises(ChError, match="can't write|no such"):
        one.to_file(parse(name), str(tmp_path / "no/such/dir.sqfs"))


def test_a_dangling_resolv_conf(puller: Make, tmp_path: Path) -> None:
    """As systemd has it: the place that the link leads to is made, for the host's to be shown there."""
    layout = Layout(tmp_path / "oci")
    layers = [craft.layer([
        item("etc/"), craft.symlink("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf"), craft.symlink("etc/hosts", "hosts"),
        craft.symlink("tmp", "var/tmp"), craft.symlink("ch", "/etc"), item("home", "a file"),
    ])]  # fmt: skip
    layout.image(layers, {"Env": ["A=b"]})
    _, path = puller().get(parse(str(layout)))
    there = names(path)
    assert {"/run/systemd/resolve/stub-resolv.conf", "/var/tmp", "/ch/environment", "/etc/hosts"} <= there
    assert "/etc/environment" not in there


def test_configurations_of_all_kinds() -> None:
    """What can't be used is left out; nothing raises anything but our own error."""
    config = inject.parse(
        json.dumps(
            {"config": {"Env": ["A=1", "=x", "B", 5, "C=\0"], "Cmd": "a b", "Labels": [1], "Volumes": None}}
        ).encode(),
        "it",
    )
    assert config.env == ["A=1"] and config.command == ["/bin/sh", "-c", "a b"] and config.labels == {}
    for raw in (b"[]", b"nope", b"[" * 100_000):
        with pytest.raises(ChError, match="it: its configuration is"):
            inject.parse(raw, "it")
    assert inject.strings_file(["\udcff", ""]) == b"angi\0\0\0\1?\0\0\0\0"


def test_an_importer_of_pyxis(tmp_path: Path, env: dict[str, str]) -> None:
    image = tmp_path / "image.sqfs"
    image.touch()
    wanted = parse("docker://ubuntu")
    program = fake_packer(
        tmp_path / "bin",
        "importer",
        f'[ "$1" = get ] && {{ echo "{image}" ; echo "$2" > {tmp_path}/got; }}; echo "$1" >> {tmp_path}/log',
    )
    assert importer.get(program, wanted, env, lambda: None) == str(image)
    importer.release(program, env)
    assert (tmp_path / "got").read_text() == wanted.text + "\n" and (tmp_path / "log").read_text() == "get\nrelease\n"
    for script, words in (
        ("echo no >&2; exit 5", "status 5: no"),
        ("echo relative", "printed no path"),
        ("", "printed no path"),
        ("echo /no/such", "printed no path"),
    ):
        with pytest.raises(ChError, match=re.escape(words)):
            importer.get(fake_packer(tmp_path / "bin", "importer", script), wanted, env, lambda: None)


def test_without_a_policy(plain: Registry, layout: Layout, puller: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the package that has policy.json is missing, as it may be without recommended packages."""
    name = plain.push(layout, "org/app:1")
    monkeypatch.setattr(fetch, "_POLICY", "/nonexistent")
    assert read(puller().get(parse(name))[1], "marker")


def test_a_policy_that_refuses(plain: Registry, layout: Layout, puller: Make, env: dict[str, str]) -> None:
    name = plain.push(layout, "org/app:1")
    policy = Path(env["HOME"], ".config/containers/policy.json")
    policy.parent.mkdir(parents=True)
    policy.write_text('{"default": [{"type": "reject"}]}')
    refused(puller(), name, "the signature policy of this host")
