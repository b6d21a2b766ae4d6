# SPDX-License-Identifier: Apache-2.0
"""The supervisor of a sandbox cluster: it starts the daemons, and ends all processes of the cluster.

Orphans of a slurmd (each slurmstepd is one, and so is a FUSE server) are adopted by the
nearest subreaper. If that were the process that uses the cluster, the cluster's orphans
would mix with its own (a test runner's, for instance). So the supervisor is a separate
process and a subreaper: all its descendants belong to the cluster and can be killed,
without guessing by names or environments.

Slurm's daemons listen on every address, or on that of the host name. The sandbox must not
be reachable from other machines. So the daemons start in a UTS namespace in which the host
name is localhost. Steps should see the real name: it is restored when all daemons listen.
slurmctld has its own UTS namespace in which the name stays localhost, because it looks it
up again when it rereads its configuration.

The supervisor's parent is a guard, which is a subreaper too and only waits. If the
supervisor is killed, the guard adopts its descendants, and kills them.

It runs by path under `python -I -S`, and needs only the standard library.

    argument     the cluster's directory, which is removed at the end
    stdin        one JSON object per line: {"name", "argv", "log"} to start a daemon,
                 {"hostname": NAME} when all daemons listen, or {"end": "jobs"}
    stdout       a line "NAME STATUS" when a daemon has exited, with waitpid(2)'s status;
                 "hostname 0" when the name is set; "jobs 0" when all jobs have ended
    end          on end of file (which comes also if the parent is killed), SIGTERM, SIGHUP, SIGINT
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

# Seconds for slurmstepd to end its tasks; more than the cluster's KillWait.
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
    """Make this process adopt orphans among its descendants, or stop that, as prctl(2)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, int(on))


def set_parent_death_signal(number: int) -> None:
    """Make the kernel send signal `number` to this process when its parent thread ends, as prctl(2)."""
    _prctl(_PR_SET_PDEATHSIG, number)


def _unshare_hostname() -> None:
    if _libc.unshare(_CLONE_NEWUTS) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


# keyctl(2)'s number: the C library has no function for it.
_SYS_KEYCTL = {"x86_64": 250, "aarch64": 219, "ppc64le": 271, "riscv64": 219, "s390x": 280}
_KEYCTL_JOIN_SESSION_KEYRING = 1


def new_session_keyring() -> None:
    """Replace the caller's session keyring (Kerberos, AFS) by a new, empty one, if the kernel supports keyrings."""
    number = _SYS_KEYCTL.get(os.uname().machine)
    if number is not None:
        _libc.syscall(ctypes.c_long(number), ctypes.c_long(_KEYCTL_JOIN_SESSION_KEYRING), None)


def parents(*, zombies: bool = True) -> dict[int, int]:
    """Return the parent's pid of every process, by pid."""
    found: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    # The command's name, in parentheses, may contain any character.
                    state, parent = file.read().rpartition(b")")[2].split()[:2]
            except OSError:
                continue  # it has ended
            if zombies or state != b"Z":
                found[int(name)] = int(parent)
    return found


def descendants(root: int, spared: frozenset[int] = frozenset(), *, zombies: bool = True) -> list[int]:
    """Return the descendants of `root`, without the processes in `spared` and their descendants."""
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
    """Kill and reap all descendants of this process, which is a subreaper, except `spared` ones and theirs.

    New processes are not missed: what a victim has forked becomes a child of this process before the
    victim can be reaped, and the descendants are listed again after each round.
    """
    while victims := descendants(os.getpid(), spared):
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in victims:
            # A grandchild can't be reaped here; it becomes a child when its parent has been reaped.
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _command_name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\n")
    except OSError:
        return ""


def _spawn(argv: list[str], log: str, own_hostname: bool = False) -> int:
    """Start `argv` in its own session with its output in the file `log`; return its pid."""
    supervisor = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        # If the supervisor is killed, the daemons end too.
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
    """Cancel all jobs, and wait up to `JOBS_GRACE` seconds for them, so that their own clean-up runs."""
    steps = [p for p in descendants(os.getpid()) if _command_name(p) == "slurmstepd"]
    scancel = shutil.which("scancel")
    if not steps or scancel is None:
        return
    # By nodes, to cancel the jobs of all partitions and users.
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
    """Carry out the requests on stdin and report each daemon's exit, until end of file or a signal."""
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
                _carry_out(json.loads(line), names, directory)


def _carry_out(order: dict[str, Any], names: dict[int, str], directory: str) -> None:
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
    """Supervise a cluster; at the end, no process and no file is left. Return the exit status."""
    set_child_subreaper(True)
    # The tasks of a slurmd must not have access to root's keys.
    new_session_keyring()
    _unshare_hostname()
    socket.sethostname("localhost")
    guard = os.getpid()
    supervisor = os.fork()
    if supervisor:
        return _guard(supervisor, directory)
    # If the guard is killed, the supervisor ends the cluster in the usual way.
    set_parent_death_signal(signal.SIGTERM)
    set_child_subreaper(True)
    if os.getppid() == guard:
        _supervise(directory)
    return 0


def _guard(supervisor: int, directory: str) -> int:
    """Wait for the supervisor's end. If it was killed, kill its descendants and remove the directory."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: os.kill(supervisor, number))
    # The guard must not keep these pipes open: the supervisor and the caller notice each other's end by them.
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
        # From here on, a signal must not interrupt the clean-up.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        kill_descendants()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
