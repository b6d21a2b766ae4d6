# SPDX-License-Identifier: Apache-2.0
"""Registries that fail, lie, stall, or send something else."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from slurm_ch.images import fetch

from . import craft
from .craft import Layout
from .pulled import Make, parse, read, refused

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


@pytest.mark.row("F2")
def test_a_registry_that_comes_back(layout: Layout, puller: Make, env: dict[str, str]) -> None:
    """503 twice, then all is well."""
    with trusted(
        env, lambda path, count: (503, {}, b"busy") if "/manifests/1" in path and count < 3 else served(layout, path)
    ) as (name, seen):
        assert read(puller().get(parse(name))[1], "marker")
        assert seen.count("/v2/app/manifests/1") == 3


@pytest.mark.row("F2")
def test_a_registry_that_stays_broken(puller: Make, env: dict[str, str]) -> None:
    with trusted(env, lambda _path, _count: (500, {}, b"broken")) as (name, seen):
        refused(puller(), name, "can't be reached: .*500")
        assert len([path for path in seen if "manifests" in path]) == 4


@pytest.mark.row("F4")
def test_too_many_requests(puller: Make, env: dict[str, str]) -> None:
    body = b'{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit"}]}'
    with trusted(env, lambda _path, _count: (429, {"Retry-After": "0"}, body)) as (name, seen):
        refused(puller(), name, "limits how much may be pulled: `slurm-ch login 127.*mirror")
        assert 3 <= len([path for path in seen if "manifests" in path]) <= 6  # skopeo's own


@pytest.mark.row("F7")
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


@pytest.mark.row("F7")
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


@pytest.mark.row("F3")
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


@pytest.mark.row("F3")
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
