# SPDX-License-Identifier: Apache-2.0
"""Run skopeo to fetch manifests and images, and to push images.

skopeo handles credential files and their helpers, mirrors, signature policies, proxies
and all transports. It gets only selected variables, and never a secret: it reads these
from the files of `docker login` and similar commands.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time

from .. import log
from ..errors import ChError
from . import children, manifest, pack
from .credentials import ENVIRONMENT, credentials_hint, runtime_directory
from .reference import DOCKER, Reference

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

# Seconds to wait before each further try.
RETRIES = (2.0, 4.0, 8.0)
# Seconds without an answer, or without progress, after which a registry counts as unreachable.
RESOLVE_SECONDS = 60.0
STALL_SECONDS = 120.0

_POLICY = "/etc/containers/policy.json"


class FetchError(ChError):
    """A registry or another source doesn't provide the image."""


class Unreachable(FetchError):
    """The registry doesn't answer, or not as a registry does; it may work later."""


class NotThere(FetchError):
    """There is no such image, or the user may not read it; registries don't tell which."""


class Skopeo:
    """Runs skopeo, with `scratch` as the private directory for its files.

    `retries`: seconds to wait before each further try, None for the default.
    """

    def __init__(self, env: Mapping[str, str], scratch: str, niceness: int = 0, retries: Iterable[float] | None = None):
        program = shutil.which("skopeo", path=env.get("PATH"))
        if program is None:
            raise FetchError("skopeo, which fetches images, is not installed: install the package skopeo")
        self._program = program
        self._env = env
        self._scratch = scratch
        self._niceness = niceness
        self._retries = tuple(RETRIES if retries is None else retries)

    def _arguments(self) -> list[str]:
        """Return skopeo's global options."""
        found = [self._program, "--tmpdir", self._scratch]
        if self._env.get("CONTAINERS_REGISTRIES_CONF"):
            # skopeo doesn't read this variable of podman's, and has an option instead.
            found += ["--registries-conf", self._env["CONTAINERS_REGISTRIES_CONF"]]
        home = os.path.join(self._env.get("HOME", "/nonexistent"), ".config/containers/policy.json")
        if not os.path.exists(home) and not os.path.exists(_POLICY):
            # skopeo fails without a policy. This is the usual one, which a separate package brings.
            policy = os.path.join(self._scratch, "policy.json")
            with open(policy, "w") as file:
                json.dump({"default": [{"type": "insecureAcceptAnything"}]}, file)
            log.debug(f"neither {home} nor {_POLICY}: no signatures are asked for")
            found += ["--policy", policy]
        return found

    def _environment(self, reference: Reference) -> dict[str, str]:
        env = {name: self._env[name] for name in ENVIRONMENT if name in self._env}
        env.update(LC_ALL="C", TMPDIR=self._scratch)
        # In this directory, skopeo keeps a database of blobs, whose lock may hang on NFS. If the directory
        # can't be created, it keeps the database in memory. containers-storage: needs the directory.
        if reference.scheme != "containers-storage":
            env["XDG_DATA_HOME"] = "/dev/null"
            env.update(runtime_directory(env, self._scratch))
        elif "XDG_DATA_HOME" in self._env:
            env["XDG_DATA_HOME"] = self._env["XDG_DATA_HOME"]
        return env

    def manifest(
        self, reference: Reference, digest: str | None = None, tick: Callable[[], None] = lambda: None
    ) -> bytes:
        """Return the manifest's bytes; FetchError if they don't have the requested digest."""
        wanted = digest or reference.digest
        argv = ["inspect", "--raw", *_daemon(reference, self._env), reference.source(digest)]
        raw = self._with_retries(reference, argv, tick, None, RESOLVE_SECONDS)
        if len(raw) > manifest.BYTES_MAX:
            raise FetchError(f"{reference.text}: its manifest is too large: more than {manifest.BYTES_MAX} bytes")
        if wanted and manifest.digest_of(raw) != wanted:
            raise FetchError(f"{reference.text}: its manifest has the digest {manifest.digest_of(raw)}, not {wanted}")
        return raw

    def copy(
        self, reference: Reference, digest: str, to: str, tick: Callable[[], None], platform: str | None = None
    ) -> None:
        """Copy the image with the manifest `digest`, or for `platform`, into an OCI layout at `to`.

        The layers keep their compression.
        """
        source = reference.source(digest)
        argv = ["copy", "--quiet", "--dest-oci-accept-uncompressed-layers", *_daemon(reference, self._env, "src-")]
        if platform is not None:
            words = ("--override-os", "--override-arch", "--override-variant")
            argv[:0] = [word for pair in zip(words, platform.split("/")) for word in pair]
        self._with_retries(reference, [*argv, source, f"oci:{to}:image"], tick, to, None)

    def push(self, layout: str, reference: Reference, tick: Callable[[], None]) -> None:
        """Push the image in an OCI layout to `reference`."""
        self._with_retries(
            reference, ["copy", "--quiet", f"oci:{layout}:image", reference.source()], tick, layout, None
        )

    def _with_retries(
        self, reference: Reference, argv: list[str], tick: Callable[[], None], growing: str | None, limit: float | None
    ) -> bytes:
        for wait in (*self._retries, None):
            try:
                return self._try_once(reference, argv, tick, growing, limit)
            except Unreachable as error:
                if wait is None:
                    raise
                log.warning(f"{error}; trying again in {wait:g} s")
                _pause(wait, tick)
        raise AssertionError

    def _try_once(
        self, reference: Reference, argv: list[str], tick: Callable[[], None], growing: str | None, limit: float | None
    ) -> bytes:
        with children.memory_file() as out, children.memory_file() as messages:
            child = children.start(
                [*self._arguments(), *argv],
                self._environment(reference),
                stdout=out,
                stderr=messages,
                # A look-up takes milliseconds and the user waits for it: with a lower priority, it would take ten
                # times as long on a busy host.
                niceness=self._niceness if limit is None else 0,
            )
            try:
                begin = changed = time.monotonic()
                size = -1
                while True:
                    status = children.ended(child, children.POLL_SECONDS)
                    if status is not None:
                        break
                    tick()
                    now = time.monotonic()
                    if growing is not None:
                        grown = tree_size(growing)
                        size, changed = grown, (now if grown != size else changed)
                    if (limit is not None and now - begin > limit) or (limit is None and now - changed > STALL_SECONDS):
                        seconds = now - (begin if limit is not None else changed)
                        raise Unreachable(f"{reference.text}: no answer for {seconds:.0f} s")
            finally:
                children.stop(child)
            if status == 0:
                out.seek(0)
                return out.read(manifest.BYTES_MAX + 1)
            text = children.last_words(messages)
        log.debug(f"skopeo {argv[0]}: status {status}: {text}")
        if status < 0:
            raise FetchError(f"{reference.text}: {children.killed('skopeo', status)}")
        raise failure(reference, text, self._env, self._scratch)


def _daemon(reference: Reference, env: Mapping[str, str], prefix: str = "") -> list[str]:
    """Return the option for the address of Docker's daemon; skopeo doesn't read DOCKER_HOST."""
    if reference.scheme != "docker-daemon" or not env.get("DOCKER_HOST"):
        return []
    return [f"--{prefix}daemon-host", env["DOCKER_HOST"]]


def _pause(seconds: float, tick: Callable[[], None]) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, children.POLL_SECONDS))
        tick()


def tree_size(directory: str) -> int:
    """Return the total size of the files below a directory, which may be changing."""
    total = 0
    for here, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.lstat(os.path.join(here, name)).st_size
            except OSError:
                continue
    return total


_MISSING_FILE = re.compile(r"no such file or directory|archive file not found|docker daemon", re.IGNORECASE)
_DISK_FULL = re.compile(r"no space left|disk quota exceeded", re.IGNORECASE)
# Patterns for skopeo's messages, and the error and message for each; the first match counts. {said} is skopeo's
# last line.
_MEANINGS: tuple[tuple[str, type[FetchError], str], ...] = (
    (
        r"server gave HTTP response to HTTPS client",
        FetchError,
        "{host} speaks HTTP, not HTTPS; to allow that, add to registries.conf: "
        '[[registry]] location = "{host}" insecure = true',
    ),
    (
        r"x509:|certificate",
        FetchError,
        "the certificate of {host} is not trusted: put its CA's certificate into "
        "/etc/containers/certs.d/{host}/ca.crt or ~/.config/containers/certs.d/{host}/ca.crt, or name it in "
        "SSL_CERT_FILE ({said})",
    ),
    (
        r"toomanyrequests|too many requests|rate limit|\b429\b",
        FetchError,
        "{host} limits how much may be pulled: `slurm-ch login {host}`, or use a mirror (registries.conf)",
    ),
    (r"no image found in (?:manifest list|image index)", FetchError, "{said}"),
    (
        r"connection refused|no such host|server misbehaving|i/o timeout|timeout exceeded|deadline exceeded"
        r"|connection reset|network is unreachable|no route to host|broken pipe|unexpected EOF|: EOF"
        r"|TLS handshake timeout|temporary failure|received unexpected HTTP status: 5|\b50[0-9] |StatusCode: 5"
        r"|Gateway|Service Unavailable|proxyconnect",
        Unreachable,
        "{host} can't be reached: {said}",
    ),
    (
        r"unauthorized|authentication required|access to the resource is denied|forbidden|insufficient_scope|denied:"
        r"|manifest unknown|name unknown|repository name not known|not found|\b40[134]\b"
        r"|invalid username/password|unable to retrieve auth token",
        NotThere,
        "not there, or you may not read it; `slurm-ch login {host}`{credentials_hint}",
    ),
    (
        r"Source image rejected|signature",
        FetchError,
        "the signature policy of this host (policy.json) refuses it: {said}",
    ),
    (
        r"unsupported MIME type for compression: .*squashfs",
        FetchError,
        "this host's skopeo is too old to push a SquashFS file as it is: leave out --squashfs, "
        "or install skopeo 1.9 or later",
    ),
    (r"digest|does not match|corrupt|invalid checksum|verif", FetchError, "damaged: {said}"),
    (r"", FetchError, "{said}"),
)


def failure(reference: Reference, text: str, env: Mapping[str, str], scratch: str) -> ChError:
    """Return the exception for skopeo's message `text`."""
    said, what, host = last_message(text), reference.text, reference.registry
    if _DISK_FULL.search(text):
        return pack.disk_full(scratch)
    if reference.scheme != DOCKER:
        missing = _MISSING_FILE.search(text)
        return NotThere(f"{what}: not there: {said}") if missing else FetchError(f"{what}: {said}")
    kind, words = next((kind, words) for found, kind, words in _MEANINGS if re.search(found, text, re.IGNORECASE))
    return kind(f"{what}: " + words.format(host=host, said=said, credentials_hint=credentials_hint(env)))


_LEVEL = re.compile(r'^time="[^"]*" level=(\w+) msg=(".*")\s*$')


def last_message(text: str) -> str:
    """Return the message of the last line that has one, without the fields that the library logrus adds."""
    for line in reversed(text.splitlines()):
        said = _message(line)
        # "(Unable to determine exit status)" follows the reason.
        if not said.startswith("("):
            return said[:600]
    return "skopeo gives no reason"


def _message(line: str) -> str:
    found = _LEVEL.match(line)
    if not found:
        return line
    try:
        return str(json.loads(found[2]))
    except ValueError:
        return found[2]
