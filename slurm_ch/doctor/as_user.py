# SPDX-License-Identifier: Apache-2.0
"""Trying it out: programs run, and containers made and left at once, as an ordinary user.

Whoever runs this as root becomes the user first, for good, in a child: nothing
that a user can put in the way is ever looked at as root.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING

from .. import linux, paths
from ..engine import container
from ..engine.caller import Caller
from ..errors import ChError, describe
from ..request import spec

if TYPE_CHECKING:
    import pwd
    from collections.abc import Callable, Sequence
    from typing import Any

SECONDS = 20

# The program that makes a container and leaves it at once: KIND [SQUASHFUSE].
MAKE_CONTAINER = os.path.join(paths.PACKAGE, "doctor", "make_container.py")

DIRECTORIES = ("dev", "etc", "proc", "root", "sys", "tmp")
FILES = ("etc/passwd", "etc/group")
# The same as a SquashFS archive (mksquashfs -all-root -nopad).
SQUASHFS = base64.b64decode(
    "aHNxcwkAAAAAAAAAAAACAAAAAAABABEAwAIBAAQAAAAAAQAAAAAAAEQBAAAAAAAAPAEAAAAAAAD//////////2AAAAAAAAAArQAA"
    "AAAAAAAKAQAAAAAAAC4BAAAAAAAASwB42mNkeMvIAAUwBhMQMwMxJ5i9BC7PDKX/AwEDXC1CngWLPCOS+UxItBbUfGR5VhT71THk"
    "2QjIsxOQ5yAgz4mkLhgozwWkAQflEaBbAHjaY2SAAGYgVgBiJgYWhvSi/NICBwZGIIeVoSCxuLg8hRWqjBFOMzGkpJYlABkgZmpJ"
    "cgNQIyPQmIKi/OQFQH0gdlF+fskBBjawkuLK4gcM7GBmSW4BADs2ESYiAHjaY2CAgAQorQClHaB0A5ReAKUPQOkHUJqBEUIBAHNP"
    "A4IKAQAAAAAAAASAAAAAADYBAAAAAAAA"
)


def become(user: pwd.struct_passwd) -> None:
    """Become `user` with that user's groups, if this process is root; there is no way back. ChError if that fails.

    Nothing of root's session goes along: no terminal to type into, no keys.
    """
    if os.geteuid() != 0:
        return
    try:
        os.setsid()
        with suppress(OSError, KeyError):  # a kernel without keyrings
            linux.keyctl_join_session_keyring()
        os.setgroups(os.getgrouplist(user.pw_name, user.pw_gid))
        os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
        os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
    except OSError as error:
        raise ChError(f"can't become {user.pw_name}") from error


def in_child(function: Callable[[], Any], user: pwd.struct_passwd | None = None) -> Any:
    """Return what `function` returns in a process of its own, of `user`'s if one is given; ChError if it fails.

    The value must be one that JSON has.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            signal.alarm(SECONDS)
            if user:
                become(user)
            answer = ("value", function())
        except Exception as error:
            answer = ("error", describe(error))
        try:
            os.write(writer, json.dumps(answer).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    if not said:
        raise ChError(f"no end within {SECONDS} s, or killed")
    kind, value = json.loads(said)
    if kind == "error":
        raise ChError(value)
    return value


def containerize(kind: str, squashfuse: str | None) -> None:
    """Make a container and leave it: `directory`, `overlay` or `squashfs`; ChError if that fails."""
    with tempfile.TemporaryDirectory(prefix="slurm-ch-doctor-") as where:
        image = os.path.join(where, "image")
        if kind == "squashfs":
            with open(image, "wb") as file:
                file.write(SQUASHFS)
        else:
            _make_directory(image)
        # In a grandchild: this process has the directory to remove.
        in_child(lambda: _enter(image, kind, squashfuse))


def _make_directory(image: str) -> None:
    for name in DIRECTORIES:
        os.makedirs(os.path.join(image, name))
    for name in FILES:
        with open(os.path.join(image, name), "w"):
            pass


def _enter(image: str, kind: str, squashfuse: str | None) -> None:
    wanted = spec.Spec(image)
    wanted.write_fake = "1M" if kind == "overlay" else None
    container.containerize(container.Container(wanted, Caller({}, cwd="/"), squashfuse))
    # As bytes: text may want a codec that Python has not loaded yet, and can't from in there.
    with open("/etc/passwd", "rb") as file:
        file.read()
    if kind == "overlay":
        with open("/written", "wb") as file:
            file.write(b"\n")


def run(argv: Sequence[str]) -> tuple[int, str]:
    """Return a program's status and all that it says, with no environment but a PATH."""
    try:
        done = subprocess.run(
            argv, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", timeout=SECONDS / 2, env={"PATH": "/usr/bin:/bin"}, cwd="/",
        )  # fmt: skip
    except OSError as error:
        raise ChError(f"can't execute {argv[0]}") from error
    except subprocess.TimeoutExpired:
        raise ChError(f"{argv[0]}: no end within {SECONDS / 2:.0f} s") from None
    return done.returncode, done.stdout
