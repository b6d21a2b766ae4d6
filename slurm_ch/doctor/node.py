# SPDX-License-Identifier: Apache-2.0
"""Find what on this node would stop a step, and suggest remedies.

Each check yields findings. Containers are actually made, as an ordinary user. The checks
of settings explain why such a trial failed, or would fail for other users.
"""

from __future__ import annotations

import os
import pwd
import re
import stat
from typing import TYPE_CHECKING

from .. import agreement, errors
from ..engine import squashfs
from . import as_user, images, installation, named_containers, software, sysctl
from .findings import OK, PROBLEM, WARNING, Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

KERNEL = (5, 12)
# Images' compressions. Our server supports those whose static library was installed when it was built.
COMPRESSIONS = ("gzip", "lz4", "lzo", "xz", "zstd")
# A limit below this is too low: each step needs two, and a node runs many steps.
FEW_NAMESPACES = 1024
FUSE_DEVICE = os.makedev(10, 229)

_SYSCTL = "/proc/sys/"
_TRIALS = (
    ("directory", "a container from a directory", "see the findings on user namespaces, and the kernel's log"),
    ("overlay", "one with --ch-write-fake", "overlay needs its module (modprobe overlay), and room for a tmpfs"),
    ("squashfs", "a container from a SquashFS file", "see the findings on /dev/fuse and ch-squashfuse_ll"),
)
_SWITCHES = (
    # name, value that prevents user namespaces, value that allows them, a better remedy
    ("kernel/unprivileged_userns_clone", "0", "1", ""),
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "0",
        "install an AppArmor profile that lets the launcher's interpreter make user namespaces (docs/admins.rst), or ",
    ),
)
_LIMITS = ("user/max_user_namespaces", "user/max_mnt_namespaces")


def read_sysctl(name: str) -> str | None:
    """Return the value of a sysctl, named by its path, or None if the kernel doesn't have it."""
    try:
        with open(_SYSCTL + name) as file:
            return file.read().strip()
    except OSError:
        return None


def check_kernel() -> Iterator[Finding]:
    """Check that the kernel has mount_setattr."""
    release = os.uname().release
    found = tuple(int(part) for part in re.findall(r"\d+", release)[:2])
    if found < KERNEL:
        yield Finding(PROBLEM, "kernel", f"Linux {release} is too old", "Linux 5.12 or later is needed")
    else:
        yield Finding(OK, "kernel", f"Linux {release}")


def check_user_namespaces() -> Iterator[Finding]:
    """Check the sysctls that limit user namespaces, now and after the next boot."""
    for name in _LIMITS:
        value = read_sysctl(name)
        dotted = name.replace("/", ".")
        if value == "0":
            yield Finding(PROBLEM, "user namespaces", f"{dotted} is 0: switched off", sysctl.remedy(name, "65536"))
        elif value and value.isdigit() and int(value) < FEW_NAMESPACES:
            text = f"{dotted} is {value}: enough for only a few steps at a time"
            yield Finding(WARNING, "user namespaces", text, sysctl.remedy(name, "65536"))
        elif value:
            yield from _check_next_boot(name, "0", value)
    for name, bad, good, better in _SWITCHES:
        value = read_sysctl(name)
        if value == bad:
            text = f"{name.replace('/', '.')} is {bad}: switched off"
            yield Finding(PROBLEM, "user namespaces", text, better + sysctl.remedy(name, good))
        elif value:
            yield from _check_next_boot(name, bad, good)


def _check_next_boot(name: str, bad: str, good: str) -> Iterator[Finding]:
    """Check that a sysctl with a good value won't get a bad one at the next boot."""
    at_boot = sysctl.at_boot(name)
    if at_boot and at_boot[0] == bad:
        text = f"{name.replace('/', '.')} is right now, but {at_boot[1]} sets it to {bad} at the next boot"
        yield Finding(WARNING, "user namespaces", text, sysctl.remedy(name, good))


def check_proc() -> Iterator[Finding]:
    """Check that /proc is writeable, and report hidepid."""
    with open("/proc/self/mountinfo", errors="replace") as file:
        mounts = [line.split() for line in file]
    for fields in mounts:
        if fields[4] != "/proc":
            continue
        options = fields[5] + "," + fields[-1]
        if "ro" in options.split(","):
            text = "/proc is mounted read-only: no user namespace can be set up"
            yield Finding(PROBLEM, "/proc", text, "mount -o remount,rw /proc")
        hidden = re.search(r"hidepid=([^,]+)", options)
        if hidden and hidden[1] not in ("0", "off"):
            yield Finding(OK, "/proc", f"mounted with hidepid={hidden[1]}, which does no harm")


def check_fuse() -> Iterator[Finding]:
    """Check that everybody may open /dev/fuse."""
    load = "modprobe fuse (and in /etc/modules-load.d/, for the next boot)"
    try:
        status = os.stat("/dev/fuse")
    except OSError as error:
        yield Finding(PROBLEM, "/dev/fuse", f"can't be looked at: {error.strerror}", load)
        return
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISCHR(status.st_mode) or status.st_rdev != FUSE_DEVICE:
        yield Finding(PROBLEM, "/dev/fuse", "is not the FUSE device", f"rm /dev/fuse; {load}")
    elif mode & 0o666 != 0o666:
        text = f"its mode is {mode:04o}: users can't open it"
        yield Finding(PROBLEM, "/dev/fuse", text, "chmod 0666 /dev/fuse, and a udev rule for the next boot")
    else:
        yield Finding(OK, "/dev/fuse", f"mode {mode:04o}")


def check_server(user: pwd.struct_passwd, path: str | None) -> Iterator[Finding]:
    """Check that the SquashFS server is installed, is slurm_ch's, and supports all compressions.

    `path`: the server that the site names, or None.
    """
    what = "ch-squashfuse_ll"
    server = path or squashfs.SERVER
    try:
        _, output = as_user.in_child(lambda: as_user.run([server, "--help"]), user)
    except errors.ChError as error:
        yield Finding(PROBLEM, what, errors.describe(error), "make install, or set squashfuse=PATH in plugstack.conf")
        return
    if "usage: ch-squashfuse_ll" not in output:
        text = f"{server} is not slurm_ch's own: it reads images without confinement"
        yield Finding(WARNING, what, text, "remove squashfuse= from plugstack.conf")
        return
    found = output.partition("compressions:")[2].split()
    missing = ", ".join(one for one in COMPRESSIONS if one not in found)
    if missing:
        text = f"{server}: was built without {missing}: images with that compression are refused"
        yield Finding(WARNING, what, text, "install the libraries' headers (docs/admins.rst), make, make install")
    else:
        yield Finding(OK, what, f"{server}: {', '.join(sorted(found))}")


def check_trials(user: pwd.struct_passwd, python: str, squashfuse: str | None) -> Iterator[Finding]:
    """Make a container of each kind, as `user`, with the launcher's interpreter."""
    for kind, what, remedy in _TRIALS:
        words = [python, "-I", "-S", as_user.MAKE_CONTAINER, kind, *([squashfuse] if squashfuse else [])]
        try:
            status, output = as_user.in_child(lambda words=words: as_user.run(words), user)  # type: ignore[misc]
            failed = (output.strip().splitlines()[-1:] or [f"status {status}"])[0] if status else ""
        except errors.ChError as error:
            failed = errors.describe(error)
        if failed:
            yield Finding(PROBLEM, "trial", f"as {user.pw_name}: {what}: {failed}", remedy)
        else:
            yield Finding(OK, "trial", f"as {user.pw_name}: {what}")


def examine(user: pwd.struct_passwd, env: Mapping[str, str], conf: str | None = None) -> Iterator[Finding]:
    """Yield all findings for this node. Trials run as `user`; `conf` is plugstack.conf's path, or None for Slurm's."""
    checks: list[Callable[[], Iterator[Finding]]] = [check_kernel, check_user_namespaces, check_proc, check_fuse]
    for check in checks:
        yield from check()
    entry, found = installation.find(env, conf)
    yield from found
    if conf is None:
        yield from installation.check_guard(env)
        yield from installation.check_slurm(env)
    server, python = None, agreement.DEFAULT_PYTHON
    if entry:
        yield from installation.check(entry, user)
        yield from images.check(entry, user)
        yield from named_containers.check(entry, user)
        yield from installation.check_files(entry, installation.argument(entry, "squashfuse") or squashfs.SERVER, user)
        server = installation.argument(entry, "squashfuse")
        python = installation.argument(entry, "python") or python
    yield from check_server(user, server)
    yield from check_trials(user, python, server)
    yield from software.check(env)
