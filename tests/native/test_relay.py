# SPDX-License-Identifier: Apache-2.0
"""ch-relay: what the script in the container sees of a command on the host, through caller and broker."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import pwd
import resource
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from slurm_ch import paths

from . import relay as stage
from .relay import Relay
from .test_relay_messages import answer, request

EXITED, KILLED, STOPPED, FAILED, REFUSED = range(1, 6)


def shown(relay: Relay, name: str, *words: str, **kw: object) -> dict[str, object]:
    done = relay.run(name, *words, **kw)
    assert (done.returncode, done.stderr) == (0, b"")
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_arguments_and_environment_arrive_as_they_are(relay: Relay) -> None:
    words = ["", " ", "-n4", "a b", "new\nline", "ä€", "x" * 100_000, "y" * 100_000, "z" * 50_000, "*", "$HOME", "--"]
    env = {f"V{n}": str(n) * 20_000 for n in range(1, 9)} | {"NL": "a\nb", "EMPTY": "", "SLURM_JOB_ID": "7"}
    found = shown(relay, "squeue", *words, env=env)
    assert found["argv"] == words
    env_found = found["env"]
    assert isinstance(env_found, dict)
    for name, value in env.items():
        assert env_found[name] == value


def test_the_script_s_variables_with_the_host_s_places(relay: Relay) -> None:
    inside = {
        "PATH": "/inside/bin", "HOME": "/root", "TMPDIR": "/inside/tmp", "LD_LIBRARY_PATH": "/inside/lib", "LD_MINE": "/inside/x.so",
        "GCONV_PATH": "/inside", "CH_RUNNING": "image", "OLDPWD": "/x", "PWD": "/nowhere", "MINE": "1", "SLURM_CH_RELAYED_FAKE": "1",
    }  # fmt: skip
    env = shown(relay, "squeue", env=inside, cwd="/usr")["env"]
    assert isinstance(env, dict)
    host = {name: value for name, value in stage.HOST.items() if name != "ONLY_HOST"}
    path = env.pop("PATH")
    assert path.endswith("host:/usr/bin:/bin")
    assert env == {**host, **stage.ASAN, "MINE": "1", "PWD": "/usr"}
    # Only srun starts something that shall have the script's own.
    env = shown(relay, "srun", env=inside, cwd="/usr")["env"]
    assert isinstance(env, dict)
    assert env.pop("PATH") == path
    assert env == {
        **host, **stage.ASAN, "MINE": "1", "PWD": "/usr", "SLURM_CH_RELAYED_PATH": "/inside/bin",
        "SLURM_CH_RELAYED_LD_LIBRARY_PATH": "/inside/lib", "SLURM_CH_RELAYED_LD_MINE": "/inside/x.so",
        "SLURM_CH_RELAYED_TMPDIR": "/inside/tmp",
    }  # fmt: skip


def test_the_host_s_slurm_conf_and_path_win(relay_program: Path, world_tmp: Path) -> None:
    place = world_tmp / "relay-conf"
    place.mkdir(mode=0o755)
    stage.make_room(relay_program, place / "room")
    path = f"{stage.make_host(place / 'host')}:/usr/bin:/bin"
    for conf in ({"SLURM_CONF": "/host/slurm.conf"}, {}):
        running = Relay(relay_program, place / "room", path, {**stage.ASAN, **conf}, "squeue,srun")
        for name in ("squeue", "srun"):
            env = shown(running, name, env={"SLURM_CONF": "/inside/slurm.conf", "PATH": "/inside"})["env"]
            assert isinstance(env, dict)
            assert (env.get("SLURM_CONF"), env["PATH"]) == (conf.get("SLURM_CONF"), path)
        running.stop()
        (place / "room/socket").unlink()


# What leads the C library, interpreters and Slurm itself to files and programs.
STEERING = {
    name: "/inside/evil"
    for name in (
        "BASH_ENV", "ENV", "PERL5OPT", "PERL5LIB", "PYTHONPATH", "PYTHONSTARTUP", "PYTHONHOME", "LD_MINE", "LD_BIND_NOT",
        "LD_LIBRARY_PATH", "GCONV_PATH", "LOCPATH", "SLURM_CONF", "SLURM_PLUGIN_DIR", "SLURM_JWT", "SLURM_CH_IMAGE",
        "SLURM_SPANK_X", "SPANK_X", "TERMINFO", "IFS", "SHELLOPTS", "PS4", "BASH_FUNC_echo%%", "MALLOC_CONF", "TMPDIR",
        "XDG_CONFIG_HOME", "PAGER", "EDITOR", "NLSPATH", "RESOLV_HOST_CONF", "HOSTALIASES", "SQUEUEX", "ONLY_HOST",
    )
}  # fmt: skip
SHOWING = {
    "LANG": "C.UTF-8", "LC_TIME": "de_DE.UTF-8", "TZ": "Europe/Berlin", "TERM": "xterm", "COLUMNS": "80", "SQUEUE_FORMAT": "%i/%.j",
    "SINFO_SORT": "+N", "SLURM_CLUSTERS": "other", "SLURM_TIME_FORMAT": "%d/%m",
}  # fmt: skip


def test_nothing_of_the_caller_s_steers_a_confined_command(relay: Relay) -> None:
    files = {"LC_ALL": "/inside/x", "LANGUAGE": "../x", "TZ": ":/inside/x", "TERM": "x/../../inside"}
    found = shown(relay, "sinfo", "-h", env={**SHOWING, **STEERING}, cwd="/usr")
    env = found["env"]
    assert isinstance(env, dict)
    assert env.pop("PATH").endswith("host:/usr/bin:/bin")
    assert env == {**stage.HOST, **stage.ASAN, **SHOWING, "PWD": os.getcwd()}
    assert (found["argv"], found["cwd"]) == (["-h"], os.getcwd())
    env = shown(relay, "sinfo", env=files)["env"]
    assert isinstance(env, dict)
    assert not env.keys() & files.keys()
    # The mark is no part of a name.
    assert answer(relay, *request("sinfo!")) == (REFUSED, 1)


def test_a_confined_command_written_in_shell(relay: Relay, tmp_path: Path) -> None:
    """Neither a file that bash would read first, nor a function in its environment, nor one beside it."""
    marker = tmp_path / "marker"
    (tmp_path / "evil").write_text(f"touch {marker}\n")
    stage.write_script(relay.room.parent / "host" / "sinfo", "#!/bin/bash\necho ran\n[ ! -e evil ] || . ./evil\n")
    env = {"BASH_ENV": str(tmp_path / "evil"), "BASH_FUNC_echo%%": f"() {{ touch {marker}; }}", "SHELLOPTS": "xtrace"}
    done = relay.run("sinfo", env=env, cwd=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"ran\n", b"")
    assert not marker.exists()


def test_what_the_script_has_unset_or_left_alone(relay: Relay) -> None:
    env = shown(relay, "srun", env={"LD_LIBRARY_PATH": "/host/lib"})["env"]
    assert isinstance(env, dict)
    assert "SLURM_CH_RELAYED_LD_LIBRARY_PATH" not in env
    env = shown(relay, "srun")["env"]
    assert isinstance(env, dict)
    assert (env["SLURM_CH_RELAYED_LD_LIBRARY_PATH"], env["LD_LIBRARY_PATH"]) == ("", "/host/lib")


def test_working_directory_umask_limits_and_signals(relay: Relay) -> None:
    def prepare() -> None:
        os.umask(0o027)
        resource.setrlimit(resource.RLIMIT_NOFILE, (321, 654))
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})

    found = shown(relay, "squeue", cwd="/usr/bin", preexec_fn=prepare)
    assert (found["cwd"], found["umask"], found["limits"], found["pgid"]) == ("/usr/bin", 0o027, [321, 654], True)
    assert found["SigBlk"] == 1 << (signal.SIGUSR2 - 1)
    # Python itself ignores SIGPIPE and SIGXFSZ; 32 and 33 are the C library's.
    own = 1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)
    found["SigIgn"] = int(str(found["SigIgn"])) & ~(3 << 31)
    assert found["SigIgn"] == own | 1 << (signal.SIGHUP - 1)


def test_a_working_directory_that_the_host_has_not(relay: Relay, tmp_path: Path) -> None:
    """As a container has them: here, one that is gone when the broker looks."""
    inside = tmp_path / "inside"
    inside.mkdir()
    sh = f"cd {inside}; mv {inside} {inside}.away; exec {relay.room}/srun"
    # getcwd tells the new name; so it is there.
    done = subprocess.run(["sh", "-c", sh], check=True, capture_output=True, env=stage.ASAN)
    assert json.loads(done.stdout)["cwd"] == f"{inside}.away"
    sh = f"mkdir {inside}; cd {inside}; rmdir {inside}; exec {relay.room}/srun"
    done = subprocess.run(["sh", "-c", sh], check=True, capture_output=True, env=stage.ASAN)
    found = json.loads(done.stdout)
    assert found["cwd"] == os.getcwd() == found["env"]["PWD"]
    sh = f"unshare -m sh -c 'mount -t tmpfs none {tmp_path}; mkdir {inside}.new; cd {inside}.new; exec {relay.room}/$0'"
    for name in ("srun", "squeue"):
        done = subprocess.run(["sh", "-c", sh.replace("$0", name)], check=True, capture_output=True, env=stage.ASAN)
        found = json.loads(done.stdout)
        assert found["cwd"] == os.getcwd()
        assert found["env"].get("SLURM_CH_RELAYED_PWD") == (f"{inside}.new" if name == "srun" else None)


def test_streams(relay: Relay, world_tmp: Path) -> None:
    host = relay.room.parent / "host"
    stage.write_script(host / "squeue", "#!/bin/sh\ncat\necho err >&2\n")
    done = relay.run("squeue", input=b"in\0" * 100_000)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"in\0" * 100_000, b"err\n")
    # A stream that the command closes is closed.
    stage.write_script(host / "squeue", "#!/bin/sh\nexec <&- >&-\necho closed >&2\nexec sleep 1000\n")
    process = relay.popen("squeue", stdin=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    assert process.stderr.readline() == b"closed\n"
    assert process.stdout.read() == b""
    pipe = select.poll()
    pipe.register(process.stdin, 0)
    assert [event for _, event in pipe.poll(20_000)] == [select.POLLERR]
    process.kill()
    process.communicate(timeout=30)


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_streams_are_closed(relay: Relay, tmp_path: Path, closed: tuple[int, ...]) -> None:
    report = tmp_path / "report"
    shut = " ".join(f"{n}>&-" for n in closed)
    # Looks without opening anything: what it opened would take a closed one's place.
    look = f'for n in {{0..100}}; do [ ! -e /proc/$$/fd/$n ] || found+=" $n"; done; echo $found > {report}'
    stage.write_script(relay.room.parent / "host" / "squeue", f"#!/bin/bash\n{look}\n")
    found = []
    for place in (relay.room, relay.room.parent / "host"):
        sh = f"exec {place}/squeue {shut}"
        subprocess.run(["sh", "-c", sh], check=True, capture_output=True, env=stage.ASAN)
        found.append(report.read_text())
    assert found[0] == found[1]


@pytest.mark.parametrize("status", [0, 1, 42, 127, 255])
def test_exit_status(relay: Relay, status: int) -> None:
    stage.write_script(relay.room.parent / "host" / "squeue", f"#!/bin/sh\nexit {status}\n")
    assert relay.run("squeue").returncode == status


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGINT, signal.SIGRTMIN])
def test_end_by_signal(relay: Relay, number: int) -> None:
    stage.write_script(relay.room.parent / "host" / "squeue", f"#!/bin/sh\nkill -{int(number)} $$\n")
    assert relay.run("squeue").returncode == -number


def started(relay: Relay, name: str, **kw: object) -> tuple[subprocess.Popen[bytes], int]:
    """Start a command and return its relay, and a pidfd of the command itself."""
    process = relay.popen(name, **kw)
    assert process.stdout is not None
    pid = int(process.stdout.readline().split()[-1])
    return process, os.pidfd_open(pid)


def test_signals_pass(relay: Relay) -> None:
    process, command = started(relay, "signals")
    assert process.stdout is not None
    for name in ("HUP", "INT", "QUIT", "TERM", "ALRM", "USR1", "WINCH"):
        process.send_signal(getattr(signal, f"SIG{name}"))
        assert process.stdout.readline().decode().strip() == f"SIG{name}"
    process.send_signal(signal.SIGUSR2)
    assert process.communicate(timeout=30)[0] == b"bye\n"
    assert process.returncode == 3
    assert stage.gone(command)
    os.close(command)


def test_a_signal_that_is_ignored_stays_so(relay: Relay) -> None:
    process, command = started(
        relay, "sleeper", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN) and None
    )
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM
    os.close(command)
    process.communicate(timeout=30)


def changed(pid: int, options: int) -> int:
    """Return a child's next status, as waitpid, but not after half a minute."""
    deadline = time.monotonic() + 30
    while not (found := os.waitpid(pid, options | os.WNOHANG))[0]:
        assert time.monotonic() < deadline
        os.sched_yield()
    return found[1]


def test_stop_and_go(relay: Relay) -> None:
    process, command = started(relay, "sleeper")
    (child,) = relay.children()
    for _ in range(2):
        process.send_signal(signal.SIGTSTP)
        assert os.WIFSTOPPED(changed(process.pid, os.WUNTRACED))
        assert Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        process.send_signal(signal.SIGCONT)
        assert os.WIFCONTINUED(changed(process.pid, os.WCONTINUED))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM
    assert stage.gone(command)
    os.close(command)


def test_a_killed_relay_s_command_is_killed(relay: Relay) -> None:
    process, command = started(relay, "sleeper")
    process.kill()
    assert stage.gone(command)
    os.close(command)
    process.communicate(timeout=30)
    assert relay.run("squeue").returncode == 0


def test_a_killed_broker(relay: Relay) -> None:
    process, command = started(relay, "sleeper")
    relay.kill()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 31
    assert err == b"slurm-ch: error: sleeper: the relay's other end, on the host, has ended before the command\n"
    assert stage.gone(command)
    os.close(command)
    # Whatever the variable says: nothing that could steer a terminal.
    done = relay.run("squeue", env={"SLURMD_NODENAME": "n1\x1b[2J"})
    assert done.returncode == 31
    assert done.stderr == b"slurm-ch: n1\\x1b[2J: error: squeue: the relay's other end, on the host, is gone\n"


def test_the_end_of_the_script_ends_all(relay: Relay) -> None:
    process, command = started(relay, "signals")
    relay.stop()
    relay.ended = True
    assert stage.gone(command)
    os.close(command)
    assert process.communicate(timeout=30)[1] == b""
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("name", "code", "why"),
    [
        ("missing", 127, "can't execute it on the host: No such file or directory"),
        ("plain", 126, "can't execute it on the host: Permission denied"),
        ("other", 126, "not a command that may be called from inside a container here"),
    ],
)
def test_what_can_t_be_called(relay: Relay, name: str, code: int, why: str) -> None:
    done = relay.run(name)
    assert (done.returncode, done.stderr.decode()) == (code, f"slurm-ch: error: {name}: {why}\n")


@pytest.mark.parametrize("name", ["../host/other", "/bin/sh", "", "srun,squeue", "sru", "srunx", "srun "])
def test_no_other_name_runs(relay: Relay, name: str) -> None:
    assert answer(relay, *request(name)) == (REFUSED, 1)


def test_a_command_in_the_working_directory_is_none(relay: Relay, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    for place in (tmp_path, tmp_path / "relative"):
        place.mkdir(exist_ok=True)
        stage.write_script(place / "missing", f"#!/bin/sh\ntouch {marker}\n")
    assert relay.run("missing", cwd=tmp_path).returncode == 127
    assert not marker.exists()


def test_by_hand(relay_program: Path) -> None:
    done = subprocess.run([relay_program], executable=relay_program, check=False, capture_output=True, env=stage.ASAN)
    assert (done.returncode, done.stdout) == (31, b"")  # its name is none of the list's
    done = subprocess.run(["ch-relay"], executable=relay_program, check=False, capture_output=True, text=True)
    assert done.returncode == 64
    assert "not by hand" in done.stderr


def test_fifty_at_once(relay: Relay) -> None:
    running = [relay.popen("sleeper") for _ in range(50)]
    pids = set()
    for process in running:
        assert process.stdout is not None
        pids.add(int(process.stdout.readline()))
    assert pids == set(relay.children())
    for process in running:
        process.terminate()
    assert {process.wait(30) for process in running} == {-signal.SIGTERM}
    for process in running:
        process.communicate(timeout=30)
    relay.wait_until_idle()


def test_another_user_gets_nothing(relay: Relay, user: str) -> None:
    """Even where the socket's and its directory's modes would let them in."""
    os.chmod(relay.socket, 0o777)
    entry = pwd.getpwnam(user)
    code = "import socket, sys; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.settimeout(20); s.connect(sys.argv[1]); print(*s.recv(8))"
    command = [sys.executable, "-I", "-S", "-c", code, relay.socket]
    done = subprocess.run(command, check=True, capture_output=True, text=True, user=entry.pw_uid, group=entry.pw_gid)
    assert struct.unpack("=II", bytes(map(int, done.stdout.split()))) == (REFUSED, 13)


def test_a_terminal(relay: Relay) -> None:
    pid, master = pty.fork()
    if pid == 0:
        os.execve(relay.room / "signals", ["signals"], {**os.environ, **stage.ASAN})
    text = b""

    def until(word: bytes) -> bytes:
        nonlocal text
        while word not in text:
            assert select.select([master], [], [], 30)[0], text
            text += os.read(master, 1000)
        before, _, text = text.partition(word)
        return before

    until(b"ready")
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
    until(b"SIGWINCH 77 33")
    os.write(master, b"\x1a")
    assert os.WIFSTOPPED(changed(pid, os.WUNTRACED))
    os.kill(pid, signal.SIGCONT)
    os.write(master, b"\x03")
    until(b"SIGINT 77 33")
    os.kill(pid, signal.SIGUSR2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    os.close(master)


def test_the_program_that_ships_needs_nothing_of_the_image() -> None:
    data = Path(paths.CH_RELAY).read_bytes()
    offset, size, count = struct.unpack_from("=Q", data, 32)[0], *struct.unpack_from("=HH", data, 54)
    kinds = {struct.unpack_from("=I", data, offset + n * size)[0] for n in range(count)}
    assert 1 in kinds  # PT_LOAD
    assert 3 not in kinds  # PT_INTERP
