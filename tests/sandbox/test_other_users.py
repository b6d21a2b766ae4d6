# SPDX-License-Identifier: Apache-2.0
"""What another user of the machine, or of the sandbox, can get from root's cluster."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shlex
import socket
import struct
import subprocess
import termios
from pathlib import Path

import pytest

from slurm_ch.sandbox.cluster import Cluster

from .stage import (
    BARE,
    COMMAND,
    NEEDS_SLURM,
    ROOT,
    Terminal,
    processes_of,
    sandbox,
)

pytestmark = NEEDS_SLURM


TYPE = """
import fcntl, termios
for letter in b"echo typed\\n":
    try:
        fcntl.ioctl(0, termios.TIOCSTI, bytes([letter]))
    except OSError:
        pass
print("done", flush=True)
"""


def test_nobody_types_into_root_s_shell(user: str) -> None:
    """The command types what root's shell would read next, as TIOCSTI does on a terminal that it shares."""
    read = 'echo ready; read -r line; echo "got:$line"'
    terminal = Terminal("--user", user, "/usr/bin/python3", "-c", TYPE, after=read)
    terminal.expect("ready")
    terminal.type("mine\n")
    assert terminal.expect("got:(.*)\r")[1] == "mine"
    assert terminal.status() == 0


def test_ctrl_c_with_nothing_to_read(user: str) -> None:
    """The command is in a session without a terminal: what root's terminal says is passed on."""
    script = "trap 'exit 9' INT; echo up; sleep 60 & wait"
    terminal = Terminal("--user", user, "sh", "-c", script, after="echo status $?", redirect="</dev/null")
    terminal.expect("up\r")
    terminal.type("\x03")
    terminal.expect("status 9\r")
    assert terminal.status() == 0


@pytest.mark.parametrize("redirected", ["", "</dev/null", ">/dev/null", "</dev/null 2>/dev/null"])
def test_no_terminal_of_root_s_is_open(user: str, tmp_path: Path, open_tmp: Path, redirected: str) -> None:
    """Not as a standard stream, not as another descriptor, and not as the terminal that controls it."""
    file = open_tmp / "seen"
    open_tmp.chmod(0o777)
    show = "import os; fds = os.listdir('/proc/self/fd'); tty = open('/proc/self/stat').read().split()[6]; print('seen', tty, *[os.readlink(f'/proc/self/fd/{n}') for n in fds if os.path.exists(f'/proc/self/fd/{n}')], file=open('{seen}', 'w'))".replace(
        "{seen}", str(file)
    )
    command = shlex.join([*COMMAND, *BARE, "--user", user, "/usr/bin/python3", "-c", show])
    pid, master = pty.fork()
    if pid == 0:
        os.environ["PYTHONPATH"] = str(ROOT)
        os.execv("/bin/sh", ["sh", "-c", f"tty > {tmp_path}/tty; cd /; {command} {redirected}"])
    while select.select([master], [], [], 60)[0]:
        try:
            if not os.read(master, 4096):
                break
        except OSError:
            break
    os.close(master)
    assert os.waitpid(pid, 0)[1] == 0
    seen = file.read_text().split()
    roots = (tmp_path / "tty").read_text().strip()
    assert seen[0] == "seen"
    assert roots.startswith("/dev/pts/")
    assert roots not in seen
    assert (seen[1] == "0") == ("<" in redirected)  # no terminal to read from: none that controls it
    number = int(seen[1])
    assert number == 0 or number & 0xFF != int(roots.rpartition("/")[2])


def test_a_shell_on_its_own_terminal(user: str) -> None:
    """Size, job control, Ctrl-C and Ctrl-D are the shell's; afterwards root's terminal is as it was."""
    terminal = Terminal(
        "--user", user, "bash", "--norc", before="stty rows 33 cols 99; stty -g", after="stty -g; echo over"
    )
    before = terminal.expect("([0-9a-f]+(:[0-9a-f]+)+)\r")[1]
    terminal.type("PS1='<$?>'; stty size\n")
    terminal.expect("33 99\r")
    terminal.type("printf 'resi''zed '; until [ \"$(stty size)\" = '44 88' ]; do :; done; echo really\n")
    terminal.expect("resized ")
    fcntl.ioctl(terminal.master, termios.TIOCSWINSZ, struct.pack("4H", 44, 88, 0, 0))
    terminal.expect("really\r")
    terminal.type("sh -c \"trap 'printf con%s tinued' CONT; printf st%s arted; while :; do read x; done\"\n")
    terminal.expect("started")
    terminal.type("\x1a")
    terminal.expect("Stopped")
    terminal.type("fg\n")
    terminal.expect("continued")
    terminal.type("\x03")
    terminal.expect("<130>")
    terminal.type("\x04")
    terminal.expect("over\r")
    assert terminal.output.count(before) == 2
    assert terminal.status() == 0


def test_root_s_environment_stays_root_s(user: str) -> None:
    mine = {"TERM": "vt100", "LC_TIME": "C", "TZ": "UTC", "LANG": "C.UTF-8"}
    roots = {
        "SECRET": "x",
        "BASH_ENV": "/x",
        "SSH_AUTH_SOCK": "/x",
        "SLURM_JOB_ID": "7",
        "PYTHONSTARTUP": "/x",
        "LD_X": "x",
    }
    done = sandbox("--user", user, "--", "env", **mine, **roots)
    found = dict(line.split("=", 1) for line in done.stdout.splitlines())
    known = {
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "SHELL",
        "SLURM_CONF",
        "COLORTERM",
        "COLUMNS",
        "LANGUAGE",
        "LINES",
        "NO_COLOR",
    }
    assert {name: value for name, value in found.items() if name in mine} == mine
    assert {name for name in found if name not in mine and name not in known and not name.startswith("LC_")} == set()
    assert found["USER"] == user


KEYCTL = """
import ctypes, os, sys
number = {"x86_64": 250, "aarch64": 219, "ppc64le": 271, "riscv64": 219, "s390x": 280}[os.uname().machine]
keyctl = lambda *words: ctypes.CDLL(None).syscall(*map(ctypes.c_long, (number, *words)))
if sys.argv[1:]:
    keyctl(1, 0)  # KEYCTL_JOIN_SESSION_KEYRING
print(keyctl(0, -3, 0), flush=True)  # KEYCTL_GET_KEYRING_ID of the session's
if sys.argv[1:]:
    os.execv(sys.argv[1], sys.argv[1:])
"""


def test_a_session_keyring_of_its_own(user: str) -> None:
    """Neither the command nor a job's step has root's session keyring, with root's Kerberos tickets."""
    ask = ["/usr/bin/python3", "-c", KEYCTL]
    script = f"{shlex.join(ask)}; srun {shlex.join(ask)}"
    command = [*ask, *COMMAND, *BARE, "--user", user, "--", "sh", "-c", script]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, cwd="/", env=env)
    roots, *found = done.stdout.split()
    assert (len(found), int(roots) > 0) == (2, True), done
    assert roots not in found


def listening_addresses(place: str) -> set[str]:
    """Return the addresses, in /proc's form, that the processes of a cluster listen on."""
    sockets = set()
    for line in processes_of(place):
        for fd in Path(f"/proc/{line.split()[0]}/fd").iterdir():
            sockets.add(os.readlink(fd))
    found = set()
    for name in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if f"socket:[{fields[9]}]" in sockets and fields[3] in ("0A", "07"):
                found.add(fields[1].partition(":")[0])
    return found


def test_daemons_listen_on_loopback_only(cluster: Cluster, user: str) -> None:
    assert listening_addresses(cluster.directory) == {"0100007F"}
    # The machine's name is itself again for what they run, and for clients.
    assert cluster.run(["srun", "-N2", "hostname"], user=user).stdout == f"{socket.gethostname()}\n" * 2
    assert "InAddrAny" not in Path(cluster.conf).read_text()


def test_other_users_can_t_use_it(user: str) -> None:
    with Cluster(plugstack_lines=[], only_user=user) as one:
        place = f"{one.directory}/munge/socket"
        for words in (["sbatch", "-o/dev/null", "--wrap=true"], ["munge", "-n", f"-S{place}"]):
            for who, works in ((user, True), ("root", True), ("daemon", False)):
                done = one.run(words, user=who, timeout=20)
                assert (done.returncode == 0) == works, (who, done.stderr)
        # Nor is there anything of theirs, or of the user's, to put in its place.
        for path in (one.directory, os.path.dirname(place)):
            assert (os.stat(path).st_uid, os.stat(path).st_mode & 0o022) == (0, 0)


def test_another_user_s_process_has_no_terminal_of_ours(cluster: Cluster, user: str) -> None:
    """By the library too: nothing to read, and what it says is seen."""
    pid, master = pty.fork()
    if pid == 0:
        code = 1
        try:
            show = "tty; ( : < /dev/tty ) 2>/dev/null || echo none; head -c1 <&1 2>&1 || echo closed"
            code = cluster.popen(["sh", "-c", show], user=user).wait()
        finally:
            os._exit(code)
    text = b""
    while select.select([master], [], [], 30)[0]:
        try:
            text += os.read(master, 4096)
        except OSError:
            break
    os.close(master)
    os.waitpid(pid, 0)
    assert text.decode().splitlines()[:2] == ["not a tty", "none"]
    assert "closed" in text.decode()
