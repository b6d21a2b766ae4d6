# SPDX-License-Identifier: Apache-2.0
"""From registries and archives to a file in the cache."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from slurm_ch.errors import ChError
from slurm_ch.images import additions, fetch, importer, manifest, pack, resolve

from . import craft
from .craft import Layout, item
from .pulled import Make, fake_packer, names, nothing_left, parse, read, refused
from .registry import Registry


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
    for text, mode in ((resolved.pinned, resolve.AUTO), (name, resolve.CACHED), (resolved.pinned, resolve.NEVER)):
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
    assert one.get(parse(text))[1] == path and one.get(parse(text), resolve.CACHED)[1] == path
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


@pytest.mark.row("F5")
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


@pytest.mark.row("F2")
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
    assert puller().get(parse(name), resolve.CACHED)[1] == path
    with pytest.raises(ChError, match="app:2: never pulled here"):
        puller().get(parse(down.reference("app:2")), resolve.CACHED)
    with pytest.raises(fetch.Unreachable, match="no such host|server misbehaving|can't be reached"):
        puller().get(parse("docker://no-such-host.invalid/app"))


@pytest.mark.row("F8")
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
        assert puller(platform).get(parse(resolved.pinned), resolve.CACHED)[1] == path
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


@pytest.mark.row("F7")
def test_what_is_no_image(puller: Make, tmp_path: Path) -> None:
    """In a layout on this host, which no registry has checked: each is refused, and nothing is published."""

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


def test_modes(plain: Registry, layout: Layout, puller: Make, tmp_path: Path) -> None:
    name = plain.push(layout, "modes:1")
    refused(puller(), name, "never pulled here", resolve.CACHED)
    refused(puller(), name, "not in .*slurm-ch pull docker://", resolve.NEVER)
    refused(puller(pull="no", images="/site"), name, r"this site allows no pulls, only its own images \(/site\)")
    refused(puller(registries="docker.io"), name, "not one of this site's registries: docker.io")
    _, path = puller().get(parse(name))
    os.chmod(path, 0o644)
    with open(path, "r+b") as file:
        file.truncate(100)
    assert puller().get(parse(name))[1] == path and os.path.getsize(path) == 100
    # What was damaged is mended.
    assert puller().get(parse(name), resolve.ALWAYS)[1] == path and pack.check(path) > 1000
    # The tag means another image now.
    other = Layout(tmp_path / "other")
    other.image([craft.layer([item("marker", "another\n")])])
    plain.push(other, "modes:1")
    assert read(puller().get(parse(name), resolve.CACHED)[1], "marker") == b"from the registry\n"
    with pytest.raises(ChError, match="not in"):
        puller().get(parse(name), resolve.NEVER)
    assert read(puller().get(parse(name))[1], "marker") == b"another\n"
    assert read(puller().get(parse(name), resolve.CACHED)[1], "marker") == b"another\n"


@pytest.mark.row("F16")
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
    """Unusable settings are left out; every error is our own."""
    config = additions.parse(
        json.dumps(
            {"config": {"Env": ["A=1", "=x", "B", 5, "C=\0"], "Cmd": "a b", "Labels": [1], "Volumes": None}}
        ).encode(),
        "it",
    )
    assert config.env == ["A=1"] and config.command == ["/bin/sh", "-c", "a b"] and config.labels == {}
    for raw in (b"[]", b"nope", b"[" * 100_000):
        with pytest.raises(ChError, match="it: its configuration is"):
            additions.parse(raw, "it")
    assert additions.strings_file(["\udcff", ""]) == b"angi\0\0\0\1?\0\0\0\0"


@pytest.mark.row("F18")
def test_an_importer_of_pyxis(tmp_path: Path, env: dict[str, str]) -> None:
    image = tmp_path / "image.sqfs"
    image.touch()
    wanted = parse("docker://ubuntu")
    program = fake_packer(
        tmp_path / "bin",
        "importer",
        f'echo "pulling"; echo "{image}"; echo "$@" >> {tmp_path}/log',
    )
    assert importer.get(program, wanted, env) == str(image)
    assert (tmp_path / "log").read_text() == f"get {wanted.text}\n"
    for script, words in (
        ("echo no >&2; exit 5", "status 5: no"),
        ("echo relative", "printed no path"),
        ("", "printed no path"),
        ("echo /no/such", "printed no path"),
    ):
        with pytest.raises(ChError, match=re.escape(words)):
            importer.get(fake_packer(tmp_path / "bin", "importer", script), wanted, env)


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
