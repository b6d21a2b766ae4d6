# SPDX-License-Identifier: Apache-2.0
"""Gives a run of the tests its own processes, network, shared memory, /var/tmp and user's home.

So whatever a test finds left behind is of this run, though another checkout's
tests run on the same machine; and no test meets another run's under the name of a
socket. Where the machine doesn't allow it (an ordinary user, a container without
the right), the tests run as they are.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slurm_ch import linux
from slurm_ch.engine import loopback

ROOT = Path(__file__).resolve().parents[1]

_CLONE_NEWIPC, _CLONE_NEWPID, _MS_REC = 0x08000000, 0x20000000, 0x4000
# linux/rtnetlink.h, linux/if_link.h, linux/sockios.h: a new link (not an old one of the name), and the kernel's answer.
_RTM_NEWLINK, _NEW_WITH_ANSWER = 16, 0x1 | 0x4 | 0x200 | 0x400
_IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_INFO_KIND, _IFF_UP = 3, 18, 1, 1
_SIOCSIFADDR = 0x8916
_UNABLE = 97
_PASSED_ON = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
# siginfo's si_code of what a terminal sends, to the whole foreground group.
_SI_KERNEL = 0x80

USER = "chuser"
ENTERED = "SLURM_CH_TESTS_OWN_VIEW"

# A descriptor of the network that this run has left, if it has.
_machines_network: int | None = None


@contextmanager
def machines_network() -> Iterator[None]:
    """Have processes that are started meanwhile use the machine's network, for downloads."""
    if _machines_network is None:
        yield
        return
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        linux.setns(_machines_network)
        yield
    finally:
        linux.setns(own)
        os.close(own)


def enter() -> None:
    """Go on in a child with its own view; the calling process ends when the child does."""
    # In the background (nohup, cron) both are ignored, by all that is started from here as well.
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, usual)
    if os.geteuid() != 0 or ENTERED in os.environ:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    if child := os.fork():
        status = _stand_by(child)
        if status == _UNABLE:
            return
        os._exit(status)
    try:
        _make()
    except OSError:
        os._exit(_UNABLE)
    os.environ[ENTERED] = "1"


def is_entered() -> bool:
    """Whether this run has a view of its own."""
    return ENTERED in os.environ


def part() -> None:
    """Have, in a part of a run that has a view, one of the part's own: with a /tmp as well; OSError.

    Jobs of two clusters may have one number, and files of a node are named after jobs.
    """
    _make()
    for place in ("/tmp", "/var/tmp"):
        _cover(place)


def _cover(place: str) -> None:
    """Have an empty file system at `place`, with nothing but the checkout where that is below it."""
    here = os.open(ROOT, os.O_PATH | os.O_CLOEXEC)
    linux.mount("tmpfs", place, "tmpfs", 0, "mode=1777")
    if ROOT.is_relative_to(place):
        ROOT.mkdir(parents=True)
        linux.mount(f"/proc/self/fd/{here}", str(ROOT), None, linux.MS_BIND | _MS_REC, None)
        os.chdir(ROOT)
    os.close(here)


def _make() -> None:
    """Return in the second process of a new pid namespace; its first one reaps."""
    linux.prctl_parent_death_signal(signal.SIGKILL)
    linux.unshare(linux.CLONE_NEWNS | _CLONE_NEWIPC | _CLONE_NEWPID)
    if first := os.fork():
        os._exit(_stand_by(first))
    linux.prctl_parent_death_signal(signal.SIGKILL)
    linux.mount(None, "/", None, _MS_REC | linux.MS_PRIVATE, None)
    linux.mount("proc", "/proc", "proc", 0, None)
    _make_network()
    for place in ("/dev/shm", "/var/tmp"):
        if not Path(__file__).is_relative_to(place):
            linux.mount("tmpfs", place, "tmpfs", 0, "mode=1777")
    _make_home()
    if child := os.fork():
        os._exit(_stand_by(child))


def _make_home() -> None:
    """Give this run an empty home of its own for the ordinary user."""
    try:
        home = Path(pwd.getpwnam(USER).pw_dir)
        status = home.stat()
    except (KeyError, OSError):
        return
    if not Path(__file__).is_relative_to(home):
        options = f"mode={status.st_mode & 0o7777:o},uid={status.st_uid},gid={status.st_gid}"
        linux.mount("tmpfs", str(home), "tmpfs", 0, options)


def _make_network() -> None:
    """Enter a new network with the loopback device, and one that mpirun and the resolver take for the outside.

    Where the kernel has no such device, or the host's name is known by the network only (Slurm looks it
    up), the network stays the machine's.
    """
    global _machines_network
    machines = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    linux.unshare(linux.CLONE_NEWNET)
    try:
        loopback.bring_up()
        # An address that is nobody's: RFC 5737.
        _add_device(b"outside", "192.0.2.1")
        socket.getaddrinfo(socket.gethostname(), None)
    except OSError:
        linux.setns(machines)
        os.close(machines)
    else:
        # A part's first network is the run's.
        if _machines_network is None:
            _machines_network = machines
        else:
            os.close(machines)


def _add_device(name: bytes, address: str) -> None:
    """Add a network device that leads nowhere, and set it up; OSError."""
    # Whichever of them the kernel has.
    if error := _try_to_add(name, b"dummy") and _try_to_add(name, b"veth"):
        raise OSError(error, os.strerror(error))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        wanted = struct.pack("=16sHH4s8x", name, socket.AF_INET, 0, socket.inet_aton(address))
        fcntl.ioctl(any_socket, _SIOCSIFADDR, wanted)


def _try_to_add(name: bytes, kind: bytes) -> int:
    """Ask for a network device of a kind; return the error's number, or 0."""
    what = _attribute(_IFLA_LINKINFO, _attribute(_IFLA_INFO_KIND, kind))
    link = struct.pack("=BxHiII", 0, 0, 0, _IFF_UP, _IFF_UP) + _attribute(_IFLA_IFNAME, name + b"\0") + what
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.send(struct.pack("=IHHII", 16 + len(link), _RTM_NEWLINK, _NEW_WITH_ANSWER, 1, 0) + link)
        (error,) = struct.unpack_from("=i", kernel.recv(4096), 16)
    return -int(error)


def _attribute(kind: int, value: bytes) -> bytes:
    """Return one of netlink's attributes."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _stand_by(child: int) -> int:
    """Reap, and pass signals on, until `child` ends; return its status as a shell does."""
    waited = {*_PASSED_ON, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waited)
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return _UNABLE
        if pid == child:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
        if pid:
            continue
        info = signal.sigwaitinfo(waited)
        if info.si_signo in _PASSED_ON and info.si_code != _SI_KERNEL:
            os.kill(child, info.si_signo)
