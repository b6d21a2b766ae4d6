# SPDX-License-Identifier: Apache-2.0
"""Run programs and make containers as an ordinary user, for the doctor's trials.

If root calls the doctor, each trial runs in a child that becomes the user first, and can't
become root again. So root never opens a file that a user may have placed.
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

# The time limit of a trial.
SECONDS = 20

# The program that makes a container and exits: KIND [SQUASHFUSE].
MAKE_CONTAINER = os.path.join(paths.PACKAGE, "doctor", "make_container.py")

# The trial's image: as a directory, and as a SquashFS file (mksquashfs -all-root -nopad).
DIRECTORIES = ("dev", "etc", "proc", "root", "sys", "tmp")
FILES = ("etc/passwd", "etc/group")
SQUASHFS = base64.b64decode(
    "aHNxcwkAAAAAAAAAAAACAAAAAAABABEAwAIBAAQAAAAAAQAAAAAAAEQBAAAAAAAAPAEAAAAAAAD//////////2AAAAAAAAAArQAA"
    "AAAAAAAKAQAAAAAAAC4BAAAAAAAASwB42mNkeMvIAAUwBhMQMwMxJ5i9BC7PDKX/AwEDXC1CngWLPCOS+UxItBbUfGR5VhT71THk"
    "2QjIsxOQ5yAgz4mkLhgozwWkAQflEaBbAHjaY2SAAGYgVgBiJgYWhvSi/NICBwZGIIeVoSCxuLg8hRWqjBFOMzGkpJYlABkgZmpJ"
    "cgNQIyPQmIKi/OQFQH0gdlF+fskBBjawkuLK4gcM7GBmSW4BADs2ESYiAHjaY2CAgAQorQClHaB0A5ReAKUPQOkHUJqBEUIBAHNP"
    "A4IKAQAAAAAAAASAAAAAADYBAAAAAAAA"
)


def become(user: pwd.struct_passwd) -> None:
    """If this process is root, change to `user` and their groups, irreversibly; ChError if that fails.

    The process also gets a new session without a terminal, and an empty session keyring.
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
    """Call `function` in a child, as `user` if one is given, and return its result; ChError if it fails.

    The result must be a value that JSON can express. The child is killed after SECONDS.
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
        reply = pipe.read()
    os.waitpid(child, 0)
    if not reply:
        raise ChError(f"it didn't end within {SECONDS} s, or was killed")
    kind, value = json.loads(reply)
    if kind == "error":
        raise ChError(value)
    return value


def containerize(kind: str, squashfuse: str | None) -> None:
    """Make a container of a kind (`directory`, `overlay` or `squashfs`) in a child that exits; ChError on failure."""
    with tempfile.TemporaryDirectory(prefix="slurm-ch-doctor-") as where:
        image = os.path.join(where, "image")
        if kind == "squashfs":
            with open(image, "wb") as file:
                file.write(SQUASHFS)
        else:
            _make_directory(image)
        # In another child, because this process has to remove the directory.
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
    """Run a program, with only PATH in its environment; return its status and its output, standard error included."""
    try:
        done = subprocess.run(
            argv, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", timeout=SECONDS / 2, env={"PATH": "/usr/bin:/bin"}, cwd="/",
        )  # fmt: skip
    except OSError as error:
        raise ChError(f"can't execute {argv[0]}") from error
    except subprocess.TimeoutExpired:
        raise ChError(f"{argv[0]} didn't end within {SECONDS / 2:.0f} s") from None
    return done.returncode, done.stdout
