# SPDX-License-Identifier: Apache-2.0
"""Debian's docker-registry on loopback: plain, with TLS by a CA of its own, and with a password too."""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import threading
import time
import urllib.request
from base64 import b64encode
from pathlib import Path

USER, PASSWORD = "someone", "S3cret-and-long-enough"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def make_ca(directory: Path) -> None:
    """Make ca.crt, and a certificate for 127.0.0.1 and localhost signed by it."""
    extensions = directory / "extensions"
    extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=critical,CA:FALSE\n")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    # Asked for and signed in two steps: OpenSSL 1.1 has no other way.
    for argv in (
        ["req", "-x509", *key, "-days", "2", "-subj", "/CN=test CA", "-keyout", "ca.key", "-out", "ca.crt"],
        ["req", "-new", *key, "-subj", "/CN=localhost", "-keyout", "key.pem", "-out", "request.pem"],
        [
            "x509",
            "-req",
            "-in",
            "request.pem",
            "-days",
            "2",
            "-CA",
            "ca.crt",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-extfile",
            extensions,
            "-out",
            "cert.pem",
        ],
    ):
        subprocess.run(["openssl", *argv], check=True, capture_output=True, cwd=directory)  # fmt: skip


class Registry:
    """A registry with a directory of its own; stops with `stop`."""

    def __init__(self, directory: Path, *, tls: Path | None = None, password: bool = False) -> None:
        self.directory = directory
        directory.mkdir(parents=True)
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        self.tls = tls
        self.password = password
        self.log = directory / "log"
        settings: dict[str, object] = {
            "version": "0.1",
            "log": {"level": "info", "accesslog": {"disabled": False}},
            "storage": {"filesystem": {"rootdirectory": str(directory / "data")}, "delete": {"enabled": True}},
        }
        http: dict[str, object] = {"addr": self.host, "secret": "x"}
        if tls is not None:
            http["tls"] = {"certificate": str(tls / "cert.pem"), "key": str(tls / "key.pem")}
        settings["http"] = http
        if password:
            words = subprocess.run(
                ["htpasswd", "-Bbn", "-C4", USER, PASSWORD], check=True, capture_output=True, text=True
            ).stdout
            (directory / "htpasswd").write_text(words)
            settings["auth"] = {"htpasswd": {"realm": "test", "path": str(directory / "htpasswd")}}
        # JSON is YAML.
        (directory / "config.yml").write_text(json.dumps(settings))
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ["docker-registry", "serve", self.directory / "config.yml"],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert self._process.poll() is None and time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.01)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def reference(self, name: str) -> str:
        return f"docker://{self.host}/{name}"

    def push(self, layout: object, name: str, image: str = "image", *options: str) -> str:
        """Push an image of a layout, all platforms of an index; return the reference."""
        argv = ["skopeo", "--insecure-policy", "copy", "--quiet", "--all", "--dest-tls-verify=false", *options]
        if self.password:
            argv += ["--dest-creds", f"{USER}:{PASSWORD}"]
        subprocess.run([*argv, f"{layout}:{image}", self.reference(name)], check=True, capture_output=True, timeout=60)
        return self.reference(name)

    def requests(self) -> list[str]:
        """Return what was asked for so far, as `METHOD PATH`."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            _, quote, rest = line.partition('] "')
            if quote and (" HTTP/" in rest):
                found.append(rest.partition(" HTTP/")[0])
        return found

    def get(self, path: str) -> bytes:
        accept = {"Accept": "application/vnd.docker.distribution.manifest.v2+json, */*"}
        request = urllib.request.Request(f"http://{self.host}{path}", headers=accept)
        with urllib.request.urlopen(request, timeout=10) as answer:
            data: bytes = answer.read()
            return data


class Slow:
    """A registry with one image, whose layer it doesn't send completely until the test lets it."""

    def __init__(self, layout: object) -> None:
        directory = Path(str(layout).partition(":")[2])
        index = json.loads((directory / "index.json").read_text())
        digest: str = index["manifests"][0]["digest"]
        blobs = directory / "blobs/sha256"
        manifest = (blobs / digest[7:]).read_bytes()
        busy, over, whole = threading.Event(), threading.Event(), threading.Event()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self._manifest(b"")

            def do_GET(self) -> None:
                if "/blobs/" not in self.path:
                    self._manifest(manifest if "/manifests/" in self.path else b"{}")
                    return
                data = (blobs / self.path.rpartition(":")[2]).read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[:1])
                self.wfile.flush()
                busy.set()
                over.wait()
                if whole.is_set():
                    self.wfile.write(data[1:])
                self.close_connection = True

            def _manifest(self, data: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Type", json.loads(manifest)["mediaType"])
                self.send_header("Docker-Content-Digest", digest)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self._busy, self._over, self._whole = busy, over, whole
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def reference(self, name: str) -> str:
        return f"docker://{self.host}/{name}"

    def wait_until_busy(self) -> None:
        assert self._busy.wait(30)

    def go_on(self) -> None:
        """From now on, send all."""
        self._whole.set()
        self._over.set()

    def stop(self) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def registries_conf(path: Path, *hosts: str) -> Path:
    """Write a registries.conf in which these registries may be without TLS."""
    path.write_text("".join(f'[[registry]]\nlocation = "{host}"\ninsecure = true\n' for host in hosts))
    return path


def auth_file(path: Path, host: str, password: str = PASSWORD) -> Path:
    """Write an auth file as `docker login` does."""
    secret = b64encode(f"{USER}:{password}".encode()).decode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"auths": {host: {"auth": secret}}}))
    os.chmod(path, 0o600)
    return path
