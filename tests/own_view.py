# SPDX-License-Identifier: Apache-2.0
"""A run of the tests sees its own processes, shared memory and /var/tmp, and nobody else's.

So whatever a test finds left behind is of this run, though another checkout's
tests run on the same machine. Where the machine doesn't allow it (an ordinary
user, a container without the right), the tests run as they are.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from slurm_ch import linux

_CLONE_NEWIPC, _CLONE_NEWPID, _MS_REC = 0x08000000, 0x20000000, 0x4000
_UNABLE = 97
_PASSED_ON = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
# siginfo's si_code of what a terminal sends, to the whole foreground group.
_SI_KERNEL = 0x80

ENTERED = "SLURM_CH_TESTS_OWN_VIEW"


def enter() -> None:
    """Go on in a child with a view of its own; the caller's process ends when that does."""
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


def _make() -> None:
    """Return in the second process of a new pid namespace; its first one reaps."""
    linux.prctl_parent_death_signal(signal.SIGKILL)
    linux.unshare(linux.CLONE_NEWNS | _CLONE_NEWIPC | _CLONE_NEWPID)
    if first := os.fork():
        os._exit(_stand_by(first))
    linux.prctl_parent_death_signal(signal.SIGKILL)
    linux.mount(None, "/", None, _MS_REC | linux.MS_PRIVATE, None)
    linux.mount("proc", "/proc", "proc", 0, None)
    for place in ("/dev/shm", "/var/tmp"):
        if not Path(__file__).is_relative_to(place):
            linux.mount("tmpfs", place, "tmpfs", 0, "mode=1777")
    if child := os.fork():
        os._exit(_stand_by(child))


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
