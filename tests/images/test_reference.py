# SPDX-License-Identifier: Apache-2.0
"""References: parsed, normalized, distinguished from paths; manifests and settings, which are text too."""

from __future__ import annotations

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_ch.errors import ChError, UsageError
from slurm_ch.images import manifest, reference, settings
from slurm_ch.images.reference import parse
from slurm_ch.request import site

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("docker://ubuntu", "docker://docker.io/library/ubuntu:latest"),
        ("docker://ubuntu:24.04", "docker://docker.io/library/ubuntu:24.04"),
        ("docker://org/app", "docker://docker.io/org/app:latest"),
        ("docker://docker.io/ubuntu", "docker://docker.io/library/ubuntu:latest"),
        ("docker://index.docker.io/org/app:1", "docker://docker.io/org/app:1"),
        ("docker://ghcr.io/org/sub/app:v1.2-3_4", "docker://ghcr.io/org/sub/app:v1.2-3_4"),
        ("docker://localhost/app", "docker://localhost/app:latest"),
        ("docker://host:5000/app", "docker://host:5000/app:latest"),
        ("docker://[::1]:5000/app", "docker://[::1]:5000/app:latest"),
        (f"docker://ubuntu@{DIGEST}", f"docker://docker.io/library/ubuntu@{DIGEST}"),
        (f"docker://ubuntu:24.04@{DIGEST}", f"docker://docker.io/library/ubuntu:24.04@{DIGEST}"),
        ("oci:dir", "oci:/here/dir"),
        ("oci:/dir:name", "oci:/dir:name"),
        ("oci-archive:a/../app.tar", "oci-archive:/here/app.tar"),
        ("docker-archive:app.tar:app:1", "docker-archive:/here/app.tar:app:1"),
        ("dir:d", "dir:/here/d"),
        ("docker-daemon:app:1", "docker-daemon:app:1"),
        ("containers-storage:localhost/app", "containers-storage:localhost/app"),
    ],
)
def test_one_form(text: str, whole: str) -> None:
    found = parse(text, "/here")
    assert found.text == whole
    assert parse(whole, "/elsewhere").text == whole
    assert "/" not in found.key()


def test_what_skopeo_is_asked_for() -> None:
    assert parse("docker://ubuntu:24.04").source() == "docker://docker.io/library/ubuntu:24.04"
    # It takes no tag beside a digest.
    assert parse(f"docker://ubuntu:24.04@{DIGEST}").source() == f"docker://docker.io/library/ubuntu@{DIGEST}"
    assert parse("docker://ubuntu:24.04").source(DIGEST) == f"docker://docker.io/library/ubuntu@{DIGEST}"
    assert parse("oci-archive:/a.tar").source(DIGEST) == "oci-archive:/a.tar"


@pytest.mark.parametrize(
    "path",
    ["foo.sqfs", "./foo", "/images/foo", "ubuntu", "ubuntu:24.04", "a/b:c", "./oci:dir", "/oci:dir", "docker:/x", "~/x:y", "-", "/",
     "http://x/y", "shub://x", "docker:x"],
)  # fmt: skip
def test_a_path_is_no_reference(path: str) -> None:
    assert not reference.is_reference(path)
    with pytest.raises(UsageError, match="not a reference"):
        parse(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("docker://", "not a name of an image: nothing"),
        ("docker://Ubuntu", "not a name of an image: .*Ubuntu"),
        ("docker://ubuntu:", "not a tag: nothing"),
        ("docker://ubuntu:-x", "not a tag: -x"),
        ("docker://ubuntu@sha256:12", "not a digest"),
        ("docker://ubuntu@sha512:" + "0" * 128, "not a digest"),
        ("docker://host_name.x/app", "not a registry's name: host_name.x"),
        ("docker://a//b", "not a name"),
        ("docker://../x/y", "not a registry's name"),
        ("docker://ubuntu 24", "not a name"),
        ("docker://ubuntu\n", "not a name"),
        ("oci:", "no name after oci:"),
        ("oci:a\nb", "no name after oci:"),
    ],
)
def test_wrong_ones_are_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse(text)


@pytest.mark.parametrize(
    "text", ["docker://me:s3cr3t@ghcr.io/org/app", "docker://me:s3cr3t@ubuntu", "docker://s3cr3t@host:5000/a:b"]
)
def test_a_password_in_a_reference_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(UsageError, match="no user and no password") as caught:
        parse(text)
    assert "s3cr3t" not in str(caught.value)


@given(st.text(max_size=40), st.sampled_from(["docker://", "oci:", "dir:", "docker-daemon:", ""]))
def test_any_text_is_parsed_or_refused(text: str, scheme: str) -> None:
    try:
        found = parse(scheme + text)
    except UsageError:
        return
    assert parse(found.text).text == found.text


def test_registries_that_a_site_allows() -> None:
    allowed = ("docker.io", "ghcr.io/org")
    for text, wanted in (
        ("docker://ubuntu", True), ("docker://ghcr.io/org/app", True), ("docker://ghcr.io/organ/app", False),
        ("docker://ghcr.io/other/app", False), ("docker://quay.io/a", False), ("oci:/x", True),
    ):  # fmt: skip
        assert reference.allowed(parse(text), allowed) is wanted
        assert reference.allowed(parse(text), ())


def raw(**fields: object) -> bytes:
    return json.dumps({"schemaVersion": 2, **fields}).encode()


BLOB = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": DIGEST, "size": 5}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"<html>", "its manifest is not JSON"),
        (b"[" * 100_000, "its manifest is not JSON"),
        (b"[]", "is not a JSON object"),
        (raw(schemaVersion=1), r"schema 1"),
        (raw(config=BLOB), "its manifest has no layers"),
        (raw(config=BLOB, layers=[{**BLOB, "mediaType": BLOB["mediaType"] + "+encrypted"}]), "layer 1 is encrypted"),
        (raw(config=BLOB, layers=[BLOB, {**BLOB, "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"}]), "layer 2 is not in the registry"),
        (raw(config=BLOB, layers=[{**BLOB, "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar"}]), "a foreign layer"),
        (raw(config=BLOB, layers=[{**BLOB, "urls": ["https://x/"]}]), "a foreign layer"),
        (raw(config=BLOB, layers=[{**BLOB, "digest": "sha256:../../etc/passwd"}]), "a digest that is not"),
        (raw(config=BLOB, layers=[{**BLOB, "size": -1}]), "a size of -1"),
        (raw(config=BLOB, layers=["x"]), "no description of a blob"),
        (raw(config=None, layers=[]), "no description of a blob"),
    ],
)  # fmt: skip
@pytest.mark.row("F7")
def test_manifests_that_are_none(data: bytes, words: str) -> None:
    with pytest.raises(ChError, match=f"it: .*{words}"):
        manifest.parse(data, "it")


def test_an_index_has_what_a_platform_needs() -> None:
    def one(os: str, architecture: str, variant: str | None = None) -> dict[str, object]:
        platform = {"os": os, "architecture": architecture, **({"variant": variant} if variant else {})}
        return {**BLOB, "digest": manifest.digest_of(f"{os}{architecture}{variant}".encode()), "platform": platform}

    known = [
        one("linux", "amd64"),
        one("linux", "arm64", "v8"),
        one("linux", "arm", "v6"),
        one("linux", "arm"),
        one("unknown", "unknown"),
        {**BLOB},
    ]
    index = manifest.parse(raw(manifests=known), "it")
    assert isinstance(index, manifest.Index)
    for platform, number in (
        ("linux/amd64", 0),
        ("linux/arm64", 1),
        ("linux/arm64/v8", 1),
        ("linux/arm/v6", 2),
        ("linux/arm/v7", 3),
        ("linux/arm", 3),
    ):
        assert manifest.choose(index, platform, "it").digest == known[number]["digest"]
    with pytest.raises(
        ChError,
        match="it: no image for linux/riscv64; there are: linux/amd64, linux/arm, linux/arm/v6, linux/arm64/v8$",
    ):
        manifest.choose(index, "linux/riscv64", "it")


def test_settings_from_plugstack() -> None:
    arguments = [
        ("cache", "/scratch/%u/%%x"), ("images", "/site/a:/site/b"), ("images", "/site/c"), ("cache_max", "200G"), ("pull", "node"),
        ("registries", "docker.io,ghcr.io/org"), ("pull_timeout", "15m"), ("pull_threads", "8"), ("pull_max", "1t"),
        ("importer", "%h/importer"), ("packer", "mksquashfs"),
    ]  # fmt: skip
    found = settings.parse(arguments, {"HOME": "/home/me"}, "me")
    assert {name for name, _ in arguments} == set(settings.ARGUMENTS) == set(site.IMAGE_ARGUMENTS)
    assert (found.cache, found.images, found.cache_max) == (
        "/scratch/me/%x",
        ("/site/a", "/site/b", "/site/c"),
        200 << 30,
    )
    assert (found.pull, found.registries, found.pull_timeout) == ("node", ("docker.io", "ghcr.io/org"), 900.0)
    assert (found.pull_threads, found.pull_max, found.importer, found.packer) == (
        8,
        1 << 40,
        "/home/me/importer",
        "mksquashfs",
    )


@pytest.mark.parametrize(
    ("env", "cache"),
    [
        ({"HOME": "/h"}, "/h/.cache/slurm_ch"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/x/slurm_ch"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "/x", "SLURM_CH_CACHE": "/c"}, "/c"),
    ],
)
def test_where_the_cache_is(env: dict[str, str], cache: str) -> None:
    assert settings.parse([], env, "me").cache == cache
    assert settings.parse([("cache", "/site")], env, "me").cache == "/site"


@pytest.mark.parametrize(
    "argument",
    [("cache", "relative"), ("cache", "/a/%z"), ("cache_max", "many"), ("pull", "sometimes"), ("pull_timeout", "1y"), ("pull_threads", "0"), ("x", "y")],
)  # fmt: skip
def test_wrong_settings_are_named(argument: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match=f"plugstack.conf: {argument[0]}={argument[1]}: "):
        settings.parse([argument], {}, "me")


def test_names_of_files_are_short_enough() -> None:
    from slurm_ch.images import names

    name = "docker://host/" + "/".join([string.ascii_lowercase] * 20)
    assert len(names._name(parse(name))) < 250
    assert names._name(parse(name)) != names._name(parse(name + "x"))
