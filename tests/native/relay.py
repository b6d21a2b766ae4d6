# SPDX-License-Identifier: Apache-2.0
"""A broker with stand-ins for Slurm's commands, and relays that call it."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from .made import SANITIZE, SPANK, write_script

# The caller must not control a command whose name has "!" after it.
COMMANDS = ("srun", "squeue", "sinfo!", "sleeper", "missing", "plain", "signals")
NAMES = tuple(name.rstrip("!") for name in COMMANDS)
HOST = {"HOME": "/host/home", "TMPDIR": "/host/tmp", "LD_LIBRARY_PATH": "/host/lib", "ONLY_HOST": "1"}
SOURCES = [*sorted((SPANK / "ch-relay").glob("*.c")), SPANK / "common/message_line.c"]

# LeakSanitizer can't examine the broker, because that isn't dumpable.
ASAN = {"ASAN_OPTIONS": "detect_leaks=0", "LSAN_OPTIONS": "detect_leaks=0"}

SHOW = f"""#!{sys.executable} -I
import json, os, resource, sys
signals = {{l.split(":")[0]: int(l.split()[1], 16) for l in open("/proc/self/status") if l[:6] in ("SigIgn", "SigBlk")}}
mask = os.umask(0)
json.dump({{
    "argv": sys.argv[1:], "env": {{k: v for k, v in os.environ.items() if k != "LC_CTYPE"}}, "cwd": os.getcwd(), "umask": mask,
    "limits": resource.getrlimit(resource.RLIMIT_NOFILE), "pgid": os.getpgid(0) == os.getpid(), **signals,
}}, sys.stdout)
"""

# Prints the signals that it receives, and ends with status 3 at SIGUSR2.
SIGNALS = f"""#!{sys.executable} -I
import os, signal
names = ("HUP", "INT", "QUIT", "TERM", "ALRM", "USR1", "USR2", "WINCH")
wanted = {{getattr(signal, "SIG" + name) for name in names}}
signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
size = lambda: "%d %d" % tuple(os.get_terminal_size(0)) if os.isatty(0) else ""
print("ready", os.getpid(), flush=True)
while (got := signal.sigwait(wanted)) != signal.SIGUSR2:
    print(got.name, size(), flush=True)
print("bye")
raise SystemExit(3)
"""


def build(to: Path) -> Path:
    """Build ch-relay with sanitizers at `to`."""
    subprocess.run(["cc", *SANITIZE, "-o", to, *SOURCES], check=True, capture_output=True)
    return to


class Relay:
    """A broker, the program that calls it, and the process that it watches."""

    def __init__(self, program: Path, room: Path, host_path: str, environment: dict[str, str], commands: str) -> None:
        self.room = room
        self.socket = str(room / "socket")
        self.watched = subprocess.Popen(["sleep", "1000"])
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(self.socket)
        listener.listen(100)
        pidfd = os.pidfd_open(self.watched.pid)
        null = os.open("/dev/null", os.O_RDWR)
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 203) for fd in (listener.fileno(), pidfd)]
        actions = [(os.POSIX_SPAWN_DUP2, null, n) for n in (0, 1)]
        actions += [(os.POSIX_SPAWN_DUP2, fd, n) for n, fd in ((3, high[0]), (4, high[1]))]
        self.errors = room / "broker.err"
        err = os.open(self.errors, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        actions.append((os.POSIX_SPAWN_DUP2, err, 2))
        # Close pytest's own descriptors, which ch-join would not leave open.
        actions += [(os.POSIX_SPAWN_CLOSE, n) for n in map(int, os.listdir("/proc/self/fd")) if n > 4 and n not in high]
        self.pid = os.posix_spawn(
            program, ["ch-relay", "--serve", commands], {"PATH": host_path, **environment}, file_actions=actions
        )
        for fd in (pidfd, null, err, *high):
            os.close(fd)
        listener.close()
        self.ended = False

    def command(self, name: str, *words: str) -> list[str]:
        return [str(self.room / name), *words]

    def popen(self, name: str, *words: str, **kw: object) -> subprocess.Popen[bytes]:
        keywords = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **kw}
        keywords["env"] = {**ASAN, "PATH": "/inside", **keywords.get("env", {})}  # type: ignore[dict-item]
        return subprocess.Popen(self.command(name, *words), **keywords)  # type: ignore[call-overload, no-any-return]

    def run(self, name: str, *words: str, **kw: object) -> subprocess.CompletedProcess[bytes]:
        text = kw.pop("input", None)
        process = self.popen(name, *words, **({"stdin": subprocess.PIPE} if text else {}), **kw)
        out, err = process.communicate(text, timeout=30)  # type: ignore[arg-type]
        assert b"Sanitizer" not in err, err.decode()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def call(self) -> socket.socket:
        """Return a connection, as a relay has one."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.connect(self.socket)
        return sock

    def children(self) -> list[int]:
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def wait_until_idle(self) -> None:
        """Wait until no command runs, and the broker has only its streams, socket, pidfd and signalfd."""
        deadline = time.monotonic() + 30
        while (count := len(os.listdir(f"/proc/{self.pid}/fd"))) > 6 or self.children():
            assert time.monotonic() < deadline, count
            os.sched_yield()

    def stop(self) -> None:
        """End the watched process: the broker must end by itself, without a message."""
        self.watched.kill()
        self.watched.wait()
        if not self.ended:
            pidfd = os.pidfd_open(self.pid)
            by_itself = gone(pidfd)
            os.close(pidfd)
            if not by_itself:
                self.kill()
            assert by_itself, "the broker outlives the script"
            _, status = os.waitpid(self.pid, 0)
            assert status == 0, self.errors.read_text()
        assert self.errors.read_text() == ""

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.ended = True


def make_room(program: Path, room: Path) -> None:
    """Make a directory as the container has it: the program, and links to it."""
    room.mkdir(mode=0o755)
    os.link(program, room / "relay")
    for name in (*NAMES, "other"):
        (room / name).symlink_to("relay")


def make_host(place: Path) -> Path:
    """Make a directory with the host's commands."""
    place.mkdir()
    write_script(place / "srun", SHOW)
    write_script(place / "squeue", SHOW)
    write_script(place / "sinfo", SHOW)
    write_script(place / "other", SHOW)
    write_script(place / "sleeper", "#!/bin/sh\necho $$\nexec sleep 1000\n")
    write_script(place / "signals", SIGNALS)
    (place / "plain").write_text("#!/bin/sh\n")
    return place


def gone(pidfd: int) -> bool:
    """Return whether the process ends, within ten seconds."""
    return bool(select.select([pidfd], [], [], 10)[0])


def message(head: bytes, fds: Sequence[int]) -> tuple[list[bytes], list[tuple[int, int, bytes]]]:
    """Return the arguments for sendmsg."""
    rights = b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds)
    return [head], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if fds else []
