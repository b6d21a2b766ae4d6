# SPDX-License-Identifier: Apache-2.0
"""The program to compare with: ch-run of Debian forky, unpacked into a tree, started with that tree's loader.

The packages come from the machine's own mirror. Nothing is installed.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SUITE = "forky"
PACKAGES = ("charliecloud-runtime", "squashfuse")
# Dependencies of scripts that aren't run here.
_NOT_UNPACKED = re.compile(r"python3|media-types|netbase|tzdata|debconf")
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


@dataclass(frozen=True)
class Peer:
    """Where ch-run and the newer squashfuse are, and how they are started."""

    ch_run: tuple[str, ...]
    squashfuse: str
    version: str
    squashfuse_version: str


def mirror() -> str:
    """Return the address of the machine's Debian mirror."""
    for path in (Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))):
        if not path.exists():
            continue
        for line in path.read_text().splitlines():
            found = re.match(r"(?:URIs:|deb\s+(?:\[[^]]*\]\s+)?)\s*(\S+/debian)/?(?:\s|$)", line)
            if found:
                return found[1]
    raise SystemExit("no Debian mirror in /etc/apt")


def packages(suite: str, names: Sequence[str], apt: Path) -> list[Path]:
    """Download packages of a Debian release, with their dependencies, into `apt`."""
    for name in ("state/lists/partial", "cache/archives/partial"):
        (apt / name).mkdir(parents=True)
    (apt / "status").touch()
    (apt / "only.sources").write_text(
        f"Types: deb\nURIs: {mirror()}\nSuites: {suite}\nComponents: main\nSigned-By: {_KEYRING}\n"
    )
    (apt / "apt.conf").write_text(
        f'Dir::State "{apt}/state"; Dir::State::status "{apt}/status"; Dir::Cache "{apt}/cache";\n'
        f'Dir::Etc::sourcelist "{apt}/only.sources"; Dir::Etc::sourceparts "{apt}/none";\n'
        'APT::Install-Recommends "false"; APT::Sandbox::User "root";\n'
    )
    env = {**os.environ, "APT_CONFIG": str(apt / "apt.conf")}
    for command in (["update"], ["install", "-y", "--download-only", *names]):
        subprocess.run(["apt-get", "-qq", *command], check=True, env=env, stdout=subprocess.DEVNULL, timeout=600)
    return sorted((apt / "cache/archives").glob("*.deb"))


def fetch(directory: Path) -> Peer:
    """Download and unpack the peer into `directory`."""
    tree = directory / "forky"
    for package in packages(SUITE, PACKAGES, directory / "apt"):
        if not _NOT_UNPACKED.search(package.name):
            subprocess.run(["dpkg-deb", "-x", package, tree], check=True, timeout=60)
    tree.chmod(0o755)
    libraries = next((tree / "usr/lib").glob("*-linux-gnu*/libc.so.6")).parent
    loader = next(path for path in libraries.glob("ld-linux-*.so*"))
    start = (str(loader), "--library-path", str(libraries))
    ch_run = (*start, str(tree / "usr/bin/ch-run"))
    squashfuse = _wrapper(directory / "squashfuse-forky", (*start, str(tree / "usr/bin/squashfuse_ll")))
    version = subprocess.run([*ch_run, "--version"], check=True, capture_output=True, text=True, timeout=10)
    banner = subprocess.run([squashfuse], check=False, capture_output=True, text=True, timeout=10).stderr
    return Peer(ch_run, squashfuse, (version.stdout or version.stderr).strip(), " ".join(banner.split()[:2]))


def _wrapper(path: Path, start: tuple[str, ...]) -> str:
    """Compile a program that executes `start` and its own arguments: a shell script would be measured too."""
    words = ", ".join(f'"{word}"' for word in start)
    source = path.with_suffix(".c")
    source.write_text(
        "#include <unistd.h>\n"
        "int main(int argc, char **argv)\n{\n"
        f"\tchar *all[argc + {len(start)}], *first[] = {{ {words} }};\n"
        f"\tfor (int i = 0; i < {len(start)}; i++)\n\t\tall[i] = first[i];\n"
        f"\tfor (int i = 1; i <= argc; i++)\n\t\tall[i + {len(start) - 1}] = argv[i];\n"
        "\treturn execv(all[0], all);\n}\n"
    )
    subprocess.run(["cc", "-O2", "-static", "-o", path, source], check=True, timeout=60)
    return str(path)
