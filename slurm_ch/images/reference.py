# SPDX-License-Identifier: Apache-2.0
"""Parse references: strings that name an image in a registry, an archive or a store. A path is never a reference.

docker://[HOST[:PORT]/]NAME[:TAG][@DIGEST]
oci:DIR[:NAME]  oci-archive:FILE[:NAME]  docker-archive:FILE[:NAME]  dir:DIR
docker-daemon:NAME:TAG  containers-storage:NAME
"""

from __future__ import annotations

import os
import re

from ..errors import UsageError

DOCKER = "docker"
OCI = "oci"
# Schemes that are followed by a path on this host, and those that are followed by a name.
_PATHS = (OCI, "oci-archive", "docker-archive", "dir")
_NAMES = ("docker-daemon", "containers-storage")

_HUB = "docker.io"
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?\Z")
_PART = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")


class Reference:
    """A parsed reference.

    `text` is its canonical form. `registry` and `digest` are only for docker://, `path` for files and directories.
    """

    __slots__ = ("digest", "name", "path", "registry", "scheme", "tag", "text")

    def __init__(self, scheme: str, name: str) -> None:
        self.scheme = scheme
        self.name = name
        self.registry = ""
        self.tag = ""
        self.digest: str | None = None
        self.path: str | None = None
        self.text = f"{scheme}:{name}"

    @property
    def local(self) -> bool:
        """Whether the image is on this host, where it may change at any time."""
        return self.scheme != DOCKER

    def source(self, digest: str | None = None) -> str:
        """Return the name for skopeo, of the image or of its manifest `digest`."""
        if self.scheme != DOCKER:
            return self.text
        wanted = digest or self.digest
        return f"docker://{self.registry}/{self.name}" + (f"@{wanted}" if wanted else f":{self.tag}")

    def key(self) -> str:
        """Return a file name for the reference's record."""
        text = f"{self.registry}/{self.name}" if self.scheme == DOCKER else self.text
        name = text.replace("%", "%25").replace("/", "%").replace(":", "+")
        tag = (self.digest or self.tag).replace(":", "-")
        return f"{name}+{tag}" if tag else name


def is_reference(text: str) -> bool:
    """Whether `text` begins with a scheme of a reference; otherwise it is a path."""
    if text.startswith("docker://"):
        return True
    scheme, colon, _ = text.partition(":")
    return bool(colon) and scheme in (*_PATHS, *_NAMES)


def parse(text: str, cwd: str | None = None) -> Reference:
    """Parse a reference, with its paths relative to `cwd` or else this process's; UsageError if it is invalid."""
    if text.startswith("docker://"):
        return _docker(text)
    scheme, colon, rest = text.partition(":")
    if not colon or scheme not in (*_PATHS, *_NAMES):
        raise UsageError(f"{text}: not a reference: it begins with none of docker://, {', '.join(_schemes())}")
    if not rest or not rest.isprintable():
        raise UsageError(f"{text!r}: no name after {scheme}:")
    if scheme in _NAMES:
        return Reference(scheme, rest)
    path, colon, inner = rest.partition(":")
    path = os.path.abspath(os.path.join(cwd or os.getcwd(), path))
    found = Reference(scheme, path + colon + inner)
    found.path, found.tag = path, inner
    return found


def _schemes() -> list[str]:
    return [f"{scheme}:" for scheme in (*_PATHS, *_NAMES)]


def _docker(text: str) -> Reference:
    rest = text[len("docker://") :]
    name, at, digest = rest.partition("@")
    if at and not _DIGEST.match(digest):
        # The message doesn't show the text before "@", which may be a password.
        if "/" in digest or not digest.startswith("sha"):
            raise UsageError(
                "docker://: a reference has no user and no password in it (what is before the @ is not shown); "
                "`slurm-ch login` keeps them"
            )
        raise UsageError(f"{text}: not a digest, which is sha256: and 64 hexadecimal digits: {digest}")
    first, slash, others = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        registry, path = first, others
    else:
        registry, path = _HUB, name
    path, colon, tag = path.partition(":")
    if not _HOST.match(registry):
        raise UsageError(f"{text}: not a registry's name: {registry}")
    if not path or not all(_PART.match(part) for part in path.split("/")):
        raise UsageError(f"{text}: not a name of an image: {path or 'nothing'} (lower case, digits, - _ . and /)")
    if colon and not _TAG.match(tag):
        raise UsageError(f"{text}: not a tag: {tag or 'nothing'}")
    if registry in ("index.docker.io", "registry-1.docker.io"):
        registry = _HUB
    if registry == _HUB and "/" not in path:
        path = "library/" + path
    found = Reference(DOCKER, path)
    found.registry = registry
    found.digest = digest or None
    # With a digest, the tag is only a comment.
    found.tag = tag or ("" if digest else "latest")
    found.text = (
        f"docker://{registry}/{path}" + (f":{found.tag}" if found.tag else "") + (f"@{digest}" if digest else "")
    )
    return found


def allowed(reference: Reference, registries: tuple[str, ...]) -> bool:
    """Whether the site's list of registries, or of repositories in them, allows the reference; an empty list does."""
    if not registries or reference.scheme != DOCKER:
        return True
    full = f"{reference.registry}/{reference.name}"
    return any(full == one or full.startswith(one.rstrip("/") + "/") for one in registries)
