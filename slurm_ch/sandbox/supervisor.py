# SPDX-License-Identifier: Apache-2.0
"""The process above all daemons of one sandbox cluster: starts them, and ends everything.

Orphans of a slurmd (each slurmstepd is one, and so is a FUSE server) reparent
to the nearest subreaper. If that were the process that wants the cluster, its
own orphans (a test runner's, say) would mix with ours. So the subreaper is a
process of its own: whatever is beneath it belongs to the cluster and may be
killed, with no guess from names or environments.

Slurm's daemons listen on every address, or on that of the machine's name. Outside of
this machine nobody has any business with ours, so they start in a UTS namespace in which
the machine is called localhost. Steps see the real name: it is put back when all listen,
but for the controller, which has a namespace of its own and looks at the name again when
it reads its configuration again.

Above it is a guard, a subreaper too, that does nothing but wait for its end:
should it be killed, what was beneath it becomes the guard's, to be killed.

It runs by path under `python -I -S` and needs the standard library only.

    argument     the cluster's directory, removed at the end
    stdin        one JSON object a line: {"name", "argv", "log"} of a daemon to start,
                 {"hostname": NAME} when all of them listen, or {"end": "jobs"}
    stdout       "NAME STATUS" a line when a daemon has exited, as waitpid(2) has it;
                 "hostname 0" when that is set; "jobs 0" when all jobs have ended
    end          on end of file (so also when our parent was killed), SIGTERM, SIGHUP, SIGINT
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import Any

# slurmstepd gets this long to end its tasks in good order; more than the cluster's KillWait.
JOBS_GRACE = 3.0

_CLONE_NEWUTS = 0x04000000
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def set_child_subreaper(on: bool) -> None:
    """Adopt the orphans beneath this process, or stop doing so, as prctl(2)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, int(on))


def set_parent_death_signal(number: int) -> None:
    """Get signal `number` when the thread that made this process ends, as prctl(2)."""
    _prctl(_PR_SET_PDEATHSIG, number)


def _unshare_hostname() -> None:
    if _libc.unshare(_CLONE_NEWUTS) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


# keyctl(2)'s number; it isn't in the C library.
_SYS_KEYCTL = {"x86_64": 250, "aarch64": 219, "ppc64le": 271, "riscv64": 219, "s390x": 280}
_KEYCTL_JOIN_SESSION_KEYRING = 1


def new_session_keyring() -> None:
    """Leave the caller's session keyring (Kerberos, AFS) for a new, empty one, if the kernel has such."""
    number = _SYS_KEYCTL.get(os.uname().machine)
    if number is not None:
        _libc.syscall(ctypes.c_long(number), ctypes.c_long(_KEYCTL_JOIN_SESSION_KEYRING), None)


def parents(*, zombies: bool = True) -> dict[int, int]:
    """Return the parent of every process."""
    found: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    # The command's name is in parentheses and may hold anything.
                    state, parent = file.read().rpartition(b")")[2].split()[:2]
            except OSError:
                continue  # it ended meanwhile
            if zombies or state != b"Z":
                found[int(name)] = int(parent)
    return found


def descendants(root: int, spared: frozenset[int] = frozenset(), *, zombies: bool = True) -> list[int]:
    """Return the processes beneath `root`, without those in `spared` and beneath them."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents(zombies=zombies).items():
        children.setdefault(parent, []).append(pid)
    found: list[int] = []
    todo = [root]
    while todo:
        for pid in children.get(todo.pop(), []):
            if pid not in spared:
                found.append(pid)
                todo.append(pid)
    return found


def kill_descendants(spared: frozenset[int] = frozenset()) -> None:
    """Kill and reap all beneath this process, a child subreaper, but `spared` children's trees.

    No death is missed though each wait blocks: what a victim forked after our look becomes our
    child before the victim can be reaped, and every reaping is followed by another look.
    """
    while victims := descendants(os.getpid(), spared):
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in victims:
            # Ours to reap, or a grandchild that becomes ours when its parent has been reaped.
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _command_name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\n")
    except OSError:
        return ""


def _spawn(argv: list[str], log: str, own_hostname: bool = False) -> int:
    """Start `argv` in a session of its own with its output in `log`; return its pid."""
    supervisor = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        # Whoever kills us with SIGKILL takes the daemons along.
        set_parent_death_signal(signal.SIGKILL)
        if os.getppid() == supervisor:
            os.setsid()
            if own_hostname:
                _unshare_hostname()
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), 1)
            os.dup2(1, 2)
            os.execv(argv[0], argv)
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(1)


def _end_jobs(directory: str) -> None:
    """Cancel what still runs and give it `JOBS_GRACE` seconds, so that its own clean-up runs."""
    steps = [p for p in descendants(os.getpid()) if _command_name(p) == "slurmstepd"]
    scancel = shutil.which("scancel")
    if not steps or scancel is None:
        return
    # Jobs can be in any partition and any user's; all of them are on some node.
    nodes = os.listdir(os.path.join(directory, "spool"))
    _spawn([scancel, "--nodelist=" + ",".join(nodes)], os.path.join(directory, "log/scancel.err"))
    poller = select.poll()
    waiting = set()
    for pid in steps:
        try:
            fd = os.pidfd_open(pid)
        except OSError:
            continue
        poller.register(fd, select.POLLIN)
        waiting.add(fd)
    deadline = time.monotonic() + JOBS_GRACE
    while waiting and (left := deadline - time.monotonic()) > 0:
        for fd, _event in poller.poll(left * 1000):
            poller.unregister(fd)
            waiting.discard(fd)


def _serve(directory: str) -> None:
    """Start what stdin asks for and report each daemon's end, until it is time to go."""
    wake, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda _number, _frame: None)
    names: dict[int, str] = {}
    orders = b""
    while True:
        ready = select.select([0, wake], [], [])[0]
        if wake in ready:
            if set(os.read(wake, 4096)) - {signal.SIGCHLD}:
                return
            for pid, status in _reap():
                if pid in names:
                    os.write(1, f"{names.pop(pid)} {status}\n".encode())
        if 0 in ready:
            if not (data := os.read(0, 65536)):
                return
            *lines, orders = (orders + data).split(b"\n")
            for line in lines:
                _obey(json.loads(line), names, directory)


def _obey(order: dict[str, Any], names: dict[int, str], directory: str) -> None:
    if "argv" in order:
        names[_spawn(order["argv"], order["log"], order["name"] == "slurmctld")] = order["name"]
    elif "hostname" in order:
        socket.sethostname(order["hostname"])
        os.write(1, b"hostname 0\n")
    else:
        _end_jobs(directory)
        os.write(1, b"jobs 0\n")


def _reap() -> list[tuple[int, int]]:
    ended = []
    try:
        while (one := os.waitpid(-1, os.WNOHANG))[0]:
            ended.append(one)
    except ChildProcessError:
        pass
    return ended


def main(directory: str) -> int:
    """Supervise until told to end, then leave no process and no file; return the exit status."""
    set_child_subreaper(True)
    # What root has in its keyring is nothing for the tasks of a slurmd.
    new_session_keyring()
    _unshare_hostname()
    socket.sethostname("localhost")
    guard = os.getpid()
    supervisor = os.fork()
    if supervisor:
        return _guard(supervisor, directory)
    # A guard that is killed takes the cluster down in good order.
    set_parent_death_signal(signal.SIGTERM)
    set_child_subreaper(True)
    if os.getppid() == guard:
        _supervise(directory)
    return 0


def _guard(supervisor: int, directory: str) -> int:
    """Wait for the supervisor's end, and finish what it left when it was killed."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: os.kill(supervisor, number))
    # The end of these streams is the supervisor's to see, and to be seen by.
    for stream in (0, 1):
        os.dup2(os.open("/dev/null", os.O_RDWR), stream)
    status = 0
    while (ended := os.wait())[0] != supervisor:
        pass
    status = os.waitstatus_to_exitcode(ended[1])
    if status:
        kill_descendants()
        shutil.rmtree(directory, ignore_errors=True)
    return status if status >= 0 else 128 - status


def _supervise(directory: str) -> None:
    try:
        _serve(directory)
        _end_jobs(directory)
    finally:
        # From here on a signal must not stop us half way.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        kill_descendants()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
