# SPDX-License-Identifier: Apache-2.0
"""The files in which skopeo looks for the user's credentials."""

from __future__ import annotations

import os
import stat

from .. import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_RUN = "/run/containers"

# The caller's variables that are passed on to skopeo.
ENVIRONMENT = (
    "HOME", "PATH", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "DOCKER_CONFIG", "REGISTRY_AUTH_FILE",
    "http_proxy", "https_proxy", "no_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "CONTAINERS_CONF", "CONTAINERS_STORAGE_CONF",
    "DOCKER_HOST", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY",
)  # fmt: skip


def auth_files(env: Mapping[str, str]) -> list[str]:
    """Return the files in which skopeo looks for credentials, in its order."""
    found = []
    if env.get("REGISTRY_AUTH_FILE"):
        return [env["REGISTRY_AUTH_FILE"]]
    runtime = env.get("XDG_RUNTIME_DIR")
    found.append(os.path.join(runtime, "containers/auth.json") if runtime else f"{_RUN}/{os.getuid()}/auth.json")
    found.append(login_file(env))
    docker = env.get("DOCKER_CONFIG") or os.path.join(env.get("HOME", "/"), ".docker")
    found.append(os.path.join(docker, "config.json"))
    return found


def runtime_directory(env: Mapping[str, str], scratch: str) -> dict[str, str]:
    """Return XDG_RUNTIME_DIR for skopeo if /run/containers isn't accessible, else no variables.

    Root's podman creates that directory for root only, and older releases of skopeo fail there.
    """
    if "REGISTRY_AUTH_FILE" not in env and not env.get("XDG_RUNTIME_DIR"):
        try:
            os.stat(auth_files(env)[0])
        except PermissionError:
            return {"XDG_RUNTIME_DIR": scratch}
        except OSError:
            pass
    return {}


def login_file(env: Mapping[str, str]) -> str:
    """Return the file for `slurm-ch login`. Unlike files in /run, it is visible in jobs too."""
    if env.get("REGISTRY_AUTH_FILE"):
        return env["REGISTRY_AUTH_FILE"]
    config = env.get("XDG_CONFIG_HOME") or os.path.join(env.get("HOME", "/"), ".config")
    return os.path.join(config, "containers/auth.json")


def credentials_hint(env: Mapping[str, str]) -> str:
    """Return the part of a message that lists the files in which credentials were looked for."""
    files = auth_files(env)
    there = [path for path in files if os.path.exists(path)]
    words = f" (credentials are in {', '.join(there)})" if there else f" (no credentials in {', '.join(files)})"
    if "SLURM_JOB_ID" in env and not there:
        words += "; podman's credentials in /run/user are not visible in jobs"
    return words


def warn_of_open_auth_files(env: Mapping[str, str]) -> None:
    """Warn if others can read the caller's credentials."""
    for path in auth_files(env):
        try:
            mode = os.stat(path).st_mode
        except OSError:
            continue
        if mode & (stat.S_IRGRP | stat.S_IROTH):
            log.warning(f"{path}: others can read your credentials: chmod 600 {path}")
