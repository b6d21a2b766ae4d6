# SPDX-License-Identifier: Apache-2.0
"""Which registries are trusted with what: TLS, passwords, and plain HTTP."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from slurm_ch.errors import ChError
from slurm_ch.images import credentials, fetch

from .craft import Layout
from .pulled import Make, parse, read, refused
from .registry import PASSWORD, USER, Registry, auth_file


@pytest.mark.row("F6")
def test_with_tls_and_a_ca_of_its_own(
    secure: Registry, layout: Layout, puller: Make, env: dict[str, str], ca: Path
) -> None:
    name = secure.push(layout, "app:1")
    words = refused(puller(), name, "is not trusted: put its CA")
    assert f"/etc/containers/certs.d/{secure.host}/ca.crt" in words and "SSL_CERT_FILE" in words
    env["SSL_CERT_FILE"] = str(ca / "ca.crt")
    assert read(puller().get(parse(name))[1], "marker")
    del env["SSL_CERT_FILE"]
    place = Path(env["HOME"], ".config/containers/certs.d", secure.host)
    place.mkdir(parents=True)
    shutil.copy(ca / "ca.crt", place)
    assert puller().resolve(parse(name)).digest


@pytest.mark.row("F5")
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
    assert "podman's credentials in /run/user are not visible in jobs" in refused(puller(), name, "not there")
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


@pytest.mark.row("F6")
def test_plain_http_is_only_for_those_named(plain: Registry, layout: Layout, puller: Make, env: dict[str, str]) -> None:
    name = plain.push(layout, "org/app:1")
    del env["CONTAINERS_REGISTRIES_CONF"]
    assert "insecure = true" in refused(puller(), name, "speaks HTTP, not HTTPS")


def test_where_root_alone_may_look(env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """root's podman makes /run/containers: skopeo 1.2 ends there, unless it has a directory of its own."""

    def environment(text: str) -> dict[str, str]:
        return fetch.Skopeo(env, str(tmp_path))._environment(parse(text))

    def denied(path: str) -> os.stat_result:
        raise PermissionError(path)

    env.pop("XDG_RUNTIME_DIR", None)
    known = "docker://host/app"
    assert "XDG_RUNTIME_DIR" not in environment(known)
    monkeypatch.setattr(credentials, "os", SimpleNamespace(stat=denied, path=os.path, getuid=os.getuid))
    assert environment(known)["XDG_RUNTIME_DIR"] == str(tmp_path)
    assert "XDG_RUNTIME_DIR" not in environment("containers-storage:app")
    env["XDG_RUNTIME_DIR"] = "/run/user/7"
    assert environment(known)["XDG_RUNTIME_DIR"] == "/run/user/7"
