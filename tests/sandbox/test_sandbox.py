# SPDX-License-Identifier: Apache-2.0
"""The sandbox: a whole Slurm cluster comes up, works, and goes without a trace."""

from __future__ import annotations

import fcntl
import os
import pty
import pwd
import re
import select
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from slurm_ch.sandbox import config, machine
from slurm_ch.sandbox.cluster import Cluster
from slurm_ch.sandbox.machine import ClusterError
from slurm_ch.sandbox.supervisor import descendants
from slurm_ch.slurm import commands

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("slurmctld", path="/usr/sbin:/usr/bin") is None,
    reason="needs root and Slurm",
)

ROOT = Path(__file__).resolve().parents[2]
RUNNER = """
import sys
from slurm_ch.cli.sandbox import sandbox
from slurm_ch import errors
try:
    sandbox()
except errors.ChError as error:
    print(errors.describe(error), file=sys.stderr)
    sys.exit(errors.exit_code(error))
"""
COMMAND = [sys.executable, "-c", RUNNER]
# No plugin: it may not be built, and these tests are about the cluster.
BARE = ["--plugstack", "# none"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(nodes=2, plugstack_lines=[]) as started:
        yield started


@pytest.fixture
def parent() -> Iterator[Path]:
    """Return a place for one cluster's directory; nothing may be left of it at the end."""
    # pytest's own directories are closed to others, and too deep for a socket's path.
    place = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    place.chmod(0o755)
    yield place
    assert list(place.iterdir()) == []
    assert processes_of(place) == []
    place.rmdir()


def processes_of(place: Path | str) -> list[str]:
    """Return the processes that have `place` in their arguments or environment."""
    needle = os.fsencode(place)
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes()
            if entry.name.isdigit() and needle in command + (entry / "environ").read_bytes():
                found.append(f"{entry.name} {command!r}")
        except OSError:
            continue
    return found


def sandbox(*arguments: str, cwd: str = "/", **kw: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        COMMAND + BARE + list(arguments),
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **kw},
    )


class Terminal:
    """A sandbox on a terminal of its own, as a person would have it."""

    def __init__(
        self, *arguments: str, before: str = "", after: str = "", redirect: str = "", **environment: str
    ) -> None:
        """`before` and `after` are what root's shell does there."""
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.environ.update(environment, PYTHONPATH=str(ROOT))
            os.chdir("/")
            command = COMMAND + BARE + list(arguments)
            if before or after:
                os.execv("/bin/bash", ["bash", "-c", f"{before}\n{shlex.join(command)} {redirect}\n{after}"])
            os.execv(COMMAND[0], command)
        self.output = ""

    def expect(self, pattern: str, seconds: float = 30) -> re.Match[str]:
        """Read until `pattern` appears."""
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.output)):
            left = deadline - time.monotonic()
            assert left > 0 and select.select([self.master], [], [], left)[0], self.output
            try:
                self.output += os.read(self.master, 4096).decode(errors="replace")
            except OSError:
                pytest.fail(f"{pattern} did not appear:\n{self.output}")
        return found

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def status(self) -> int:
        """Wait for the end; return the status."""
        while True:
            try:
                if not (data := os.read(self.master, 4096)):
                    break
                self.output += data.decode(errors="replace")
            except OSError:
                break
        os.close(self.master)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def directories_beneath(pid: int) -> set[str]:
    """Return the directories of the clusters that `pid` has started."""
    found = set()
    for child in descendants(pid):
        try:
            arguments = Path(f"/proc/{child}/cmdline").read_text().split("\0")
        except OSError:
            continue
        found |= {arguments[n + 1] for n, x in enumerate(arguments) if x.endswith("/supervisor.py")}
    return found


def assert_gone(directory: str) -> None:
    assert processes_of(directory) == []
    assert not os.path.exists(directory)


# --- Cluster -----------------------------------------------------------------


def test_all_nodes_are_idle(cluster: Cluster) -> None:
    assert cluster.node_names == ["n1", "n2"]
    assert set(cluster.node_states()) == {"n1", "n2"}
    assert set(cluster.node_states().values()) <= {"idle", "mixed"}
    assert cluster.version > (20,)


def test_a_slurm_with_one_slurmd_per_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As distributions other than Debian build it."""
    real = shutil.which("slurmctld", path="/usr/sbin:/usr/bin")
    said = "slurmctld: error: Duplicated NodeHostName localhost in the config file"
    other = tmp_path / "slurmctld"
    other.write_text(f'#!/bin/sh\n[ "$1" != -V ] || exec {real} -V\necho "{said}" >&2\nexit 1\n')
    other.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ClusterError) as caught:
        Cluster(nodes=2, plugstack_lines=[]).start()
    assert str(caught.value) == (
        "2 nodes on one machine need a Slurm that was built with --enable-multiple-slurmd, which this isn't: "
        "start one node (--nodes 1)"
    )
    # With one node, what it says is no explanation.
    with pytest.raises(ClusterError, match="slurmctld did not start"):
        Cluster(nodes=1, plugstack_lines=[]).start()


@pytest.mark.parametrize("nodes", [1, 2])
def test_srun_on_nodes(cluster: Cluster, user: str, nodes: int) -> None:
    done = cluster.run(["srun", f"-N{nodes}", "sh", "-c", "echo $SLURMD_NODENAME"], user=user, timeout=20)
    assert done.returncode == 0, done.stderr
    assert len(set(done.stdout.split())) == nodes


def test_run_is_the_user_with_their_groups(cluster: Cluster, user: str) -> None:
    entry = pwd.getpwnam(user)
    for prefix in ([], ["srun"]):
        done = cluster.run([*prefix, "sh", "-c", "id -u; id -g; id -G"], user=user, timeout=20)
        uid, gid, groups = done.stdout.splitlines()
        assert (int(uid), int(gid)) == (entry.pw_uid, entry.pw_gid)
        assert set(map(int, groups.split())) == set(os.getgrouplist(user, entry.pw_gid))


def test_environment_is_the_users(cluster: Cluster, user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("TERM", "vt100")
    environ = cluster.environ(user)
    assert environ["SLURM_CONF"] == cluster.conf
    assert environ["USER"] == environ["LOGNAME"] == user
    assert environ["HOME"] == pwd.getpwnam(user).pw_dir
    assert environ["TERM"] == "vt100"
    assert [name for name in environ if name.startswith("SLURM_")] == ["SLURM_CONF"]


def test_jobs_share_the_nodes(cluster: Cluster, user: str) -> None:
    """Jobs that ask for all CPUs run beside each other."""
    command = ["srun", "-Jpair", "-N2", "--overcommit", "-n64", "sleep", "60"]
    jobs = [cluster.popen(command, user=user, stderr=subprocess.DEVNULL) for _ in range(2)]

    def running() -> int:
        listed = cluster.run(["squeue", "--noheader", "--name=pair", "--states=running"], user=user)
        return len(listed.stdout.splitlines())

    wait_until(lambda: running() == len(jobs))
    cluster.run(["scancel", "--name=pair"], user=user)
    for job in jobs:
        job.wait(timeout=30)


def test_run_timeout_ends_the_job(cluster: Cluster, user: str) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        cluster.run(["sh", "-c", "srun -Jlate sleep 600; :"], user=user, timeout=1)
    left = cluster.run(["squeue", "--noheader", "--name=late", "--states=running"], user=user)
    assert left.stdout == ""


def test_two_clusters_at_once(cluster: Cluster, user: str) -> None:
    with Cluster(nodes=1, plugstack_lines=[]) as other:
        assert other.directory != cluster.directory
        for each in (other, cluster, other):
            done = each.run(["srun", "sh", "-c", "echo $SLURM_CONF"], user=user, timeout=20)
            assert done.stdout.strip() == each.conf
        directory = other.directory
    assert_gone(directory)
    assert cluster.run(["srun", "true"], user=user, timeout=20).returncode == 0


@pytest.mark.parametrize("kind", ["srun", "sbatch"])
def test_stop_lets_jobs_clean_up(parent: Path, user: str, kind: str) -> None:
    mark = parent / "mark"
    os.mkfifo(fifo := parent / "fifo")
    for path in (mark, fifo):
        path.touch()
        path.chmod(0o666)
    script = f"trap 'echo term > {mark}; exit' TERM; echo > {fifo}; while :; do sleep 0.1; done"
    with Cluster(plugstack_lines=[], directory_parent=str(parent)) as one:
        if kind == "srun":
            one.popen(["srun", "-u", "sh", "-c", script], user=user)
        else:
            batch = f"#!/bin/sh\nsrun sh -c {shlex.quote(script)}\n"
            one.run(["sbatch", "--output=/dev/null"], user=user, input=batch)
        assert fifo.read_text() == "\n"
    assert mark.read_text() == "term\n"
    mark.unlink()
    fifo.unlink()


def test_stop_ends_clients(user: str) -> None:
    with Cluster(plugstack_lines=[]) as one:
        client = one.popen(["srun", "sleep", "600"], user=user)
    assert client.returncode is not None


def test_stop_ends_what_left_its_job(parent: Path, user: str) -> None:
    """A daemon of a job that is over belongs to nobody but the supervisor."""
    with Cluster(plugstack_lines=[], directory_parent=str(parent)) as one:
        done = one.run(["srun", "sh", "-c", "setsid -f sleep 600 >/dev/null 2>&1"], user=user, timeout=20)
        assert done.returncode == 0
        assert any("sleep" in line for line in processes_of(parent))


def test_exception_leaves_nothing(parent: Path) -> None:
    one = Cluster(plugstack_lines=[], directory_parent=str(parent))
    with pytest.raises(ZeroDivisionError), one:
        raise ZeroDivisionError


@pytest.mark.parametrize("who", ["guard", "supervisor"])
def test_nothing_outlives_a_kill_while_a_job_runs(parent: Path, user: str, who: str) -> None:
    """A slurmstepd is in no group, session or parent's care of anybody that was killed."""
    with Cluster(plugstack_lines=[], directory_parent=str(parent)) as one:
        assert one._supervisor is not None
        guard = one._supervisor.pid
        job = one.popen(["srun", "sh", "-c", "echo up; exec sleep 600"], user=user, stdout=subprocess.PIPE, text=True)
        assert job.stdout is not None
        assert job.stdout.readline() == "up\n"
        (supervisor,) = Path(f"/proc/{guard}/task/{guard}/children").read_text().split()
        os.kill(guard if who == "guard" else int(supervisor), signal.SIGKILL)
        job.kill()
        job.communicate()
        wait_until(lambda: processes_of(parent) == [] and list(parent.iterdir()) == [])


def test_killed_supervisor_takes_the_daemons_along(parent: Path) -> None:
    with Cluster(nodes=2, plugstack_lines=[], directory_parent=str(parent)) as one:
        assert one._supervisor is not None
        one._supervisor.kill()
        wait_until(lambda: processes_of(parent) == [])


def test_unrelated_children_survive() -> None:
    with subprocess.Popen(["sleep", "600"]) as bystander:
        with Cluster(plugstack_lines=[]):
            pass
        assert bystander.poll() is None
        bystander.kill()


def test_a_daemon_that_fails_is_named(parent: Path) -> None:
    with pytest.raises(ClusterError, match=r"slurmctld did not start \(status 1\)") as caught:
        Cluster(plugstack_lines=[], slurm_conf_extra="Nonsense=yes", directory_parent=str(parent)).start()
    assert "Nonsense" in str(caught.value)


def test_a_node_that_fails_is_named(parent: Path) -> None:
    with pytest.raises(ClusterError, match=r"(?s)n1 did not start.*no-such-plugin"):
        Cluster(
            plugstack_lines=["required /no-such-plugin.so"],
            directory_parent=str(parent),
        ).start()


def test_taken_port_is_retried(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = machine.free_ports(2)
    with Cluster(plugstack_lines=[]) as first:
        ports = iter([first._port, first._port - 1, wanted])
        monkeypatch.setattr(machine, "free_ports", lambda _count: next(ports))
        with Cluster(plugstack_lines=[], directory_parent=str(parent)) as second:
            assert second._port == wanted


def test_cluster_outlives_the_thread_that_started_it(user: str) -> None:
    one = Cluster(plugstack_lines=[])
    starter = threading.Thread(target=one.start)
    starter.start()
    starter.join()
    try:
        assert one.run(["srun", "true"], user=user, timeout=20).returncode == 0
    finally:
        one.stop()
    assert_gone(one.directory)


def test_unknown_user_is_an_error(cluster: Cluster) -> None:
    with pytest.raises(ClusterError, match="nobody-at-all: no such user"):
        cluster.run(["true"], user="nobody-at-all")


@pytest.mark.parametrize(
    ("text", "version"),
    [("slurm-wlm 22.05.8", (22, 5, 8)), ("slurm 26.05.5-1", (26, 5, 5)), ("what?", ())],
)
def test_version(text: str, version: tuple[int, ...]) -> None:
    assert commands.parse_version(text) == version


def test_cgroups_are_disabled_where_slurm_knows_the_word() -> None:
    assert config.cgroup_conf((22, 5, 8)) is None
    assert config.cgroup_conf((24, 11, 5)) == "CgroupPlugin=disabled\n"


# --- slurm-ch sandbox --------------------------------------------------------


@pytest.mark.parametrize(("script", "status"), [("exit 7", 7), ("kill -9 $$", 137), (":", 0)])
def test_status_passes_through(user: str, script: str, status: int) -> None:
    done = sandbox("--user", user, "--", "sh", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


def test_command_sees_the_cluster(user: str) -> None:
    script = "echo $SLURM_CONF; pwd; id -un; srun -N2 -l printenv SLURMD_NODENAME | sort"
    done = sandbox("--nodes=2", "--user", user, "--", "sh", "-c", script, cwd="/usr")
    conf, directory, name, *nodes = done.stdout.splitlines()
    assert conf.endswith("/slurm.conf")
    assert (directory, name) == ("/usr", user)
    assert sorted(line.split()[-1] for line in nodes) == ["n1", "n2"]
    assert_gone(os.path.dirname(conf))


def test_user_is_who_called_sudo(user: str) -> None:
    assert sandbox("--", "id", "-un", SUDO_USER=user).stdout == f"{user}\n"


def test_closed_directory_becomes_home(user: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    done = sandbox("--user", user, "pwd", cwd=str(tmp_path))
    home = pwd.getpwnam(user).pw_dir
    assert done.stdout.strip() == (home if os.path.isdir(home) else "/")


def test_orphans_of_the_command_end(user: str) -> None:
    done = sandbox("--user", user, "--", "sh", "-c", "echo $SLURM_CONF; setsid sleep 600 >&- 2>&-&")
    assert_gone(os.path.dirname(done.stdout.strip()))


def test_extra_lines_are_used(user: str) -> None:
    line = "PartitionName=second Nodes=n1"
    done = sandbox("--slurm-conf", line, "--user", user, "--", "sinfo", "-h", "-o", "%R")
    assert sorted(done.stdout.split()) == ["sandbox", "second"]


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["--user", "nobody-at-all", "true"], 64, "--user nobody-at-all: no such user"),
        (["--nodes", "0", "true"], 2, "--nodes"),
        (["--", "/no/such/command"], 127, "/no/such/command: No such file or directory"),
        (["--", "/etc/passwd"], 126, "/etc/passwd: Permission denied"),
        (["--slurm-conf", "Nonsense=yes", "true"], 31, "slurmctld did not start"),
    ],
)
def test_errors(arguments: list[str], status: int, text: str) -> None:
    done = sandbox(*arguments)
    assert done.returncode == status
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_must_be_root(user: str, tmp_path: Path) -> None:
    # A copy that the user can read, wherever this tree is.
    with Cluster(plugstack_lines=[]) as one:
        copy = shutil.copytree(ROOT / "slurm_ch", Path(one.directory) / "lib" / "slurm_ch")
        shutil.copytree(os.path.dirname(click.__file__), copy.parent / "click")
        done = one.run(
            ["/usr/bin/python3", "-c", RUNNER, "true"],
            user=user,
            env={"PYTHONPATH": str(copy.parent), "PYTHONDONTWRITEBYTECODE": "1"},
        )
    assert done.returncode == 31
    assert done.stderr == "sandbox: must be root\n"


def test_ctrl_c_ends_the_command_only(user: str) -> None:
    """The command gets it from the terminal; the sandbox waits and leaves nothing."""
    terminal = Terminal("--user", user, "sh", "-c", "echo $SLURM_CONF; exec srun -u sh -c 'echo in; sleep 60'")
    directory = os.path.dirname(terminal.expect(r"(/\S+/slurm\.conf)")[1])
    terminal.expect("in\r")
    # srun wants two within a second.
    terminal.type("\x03")
    terminal.expect("interrupt")
    terminal.type("\x03")
    assert terminal.status() != 0
    assert "Traceback" not in terminal.output
    assert_gone(directory)


def test_interactive_shell(user: str) -> None:
    terminal = Terminal("--user", user)
    terminal.expect("ends with this shell")
    terminal.type("echo $SLURM_CONF\n")
    directory = os.path.dirname(terminal.expect(r"(/tmp/\S+/slurm\.conf)")[1])
    terminal.type("srun hostname; exit 5\n")
    assert terminal.status() == 5
    assert_gone(directory)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_is_forwarded(user: str, number: signal.Signals) -> None:
    script = "trap 'exit 9' TERM HUP; echo $SLURM_CONF; sleep 60 & wait"
    terminal = Terminal("--user", user, "sh", "-c", script)
    directory = os.path.dirname(terminal.expect(r"(/\S+/slurm\.conf)\r")[1])
    os.kill(terminal.pid, number)
    assert terminal.status() == 9
    assert_gone(directory)


def test_command_that_ignores_signals_is_killed(user: str) -> None:
    script = "trap '' TERM; echo $SLURM_CONF; sleep 60"
    terminal = Terminal("--user", user, "sh", "-c", script)
    directory = os.path.dirname(terminal.expect(r"(/\S+/slurm\.conf)\r")[1])
    os.kill(terminal.pid, signal.SIGTERM)
    assert terminal.status() == 128 + signal.SIGKILL
    assert_gone(directory)


def test_kill_9_leaves_nothing(user: str) -> None:
    terminal = Terminal("--user", user, "sh", "-c", "echo $SLURM_CONF; srun sleep 60")
    directory = os.path.dirname(terminal.expect(r"(/\S+/slurm\.conf)\r")[1])
    os.kill(terminal.pid, signal.SIGKILL)
    assert terminal.status() == -signal.SIGKILL
    wait_until(lambda: not os.path.exists(directory) and processes_of(directory) == [])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_during_the_start(user: str, number: signal.Signals) -> None:
    """Wherever in the start it comes, nothing is left."""
    terminal = Terminal("--user", user, "sleep", "60")
    wait_until(lambda: directories_beneath(terminal.pid) != set())
    (directory,) = directories_beneath(terminal.pid)
    # To all, as a terminal does it: if the start is over already, it is the command's.
    os.killpg(terminal.pid, number)
    assert terminal.status() == 128 + number
    assert_gone(directory)


# --- what another user gets of root's ----------------------------------------

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
def test_no_terminal_of_root_s_is_open(user: str, tmp_path: Path, redirected: str) -> None:
    """Not as a standard stream, not as another descriptor, and not as the terminal that controls it."""
    show = "import os; fds = os.listdir('/proc/self/fd'); tty = open('/proc/self/stat').read().split()[6]; print('seen', tty, *[os.readlink(f'/proc/self/fd/{n}') for n in fds if os.path.exists(f'/proc/self/fd/{n}')], file=open('/tmp/seen-by-command', 'w'))"
    command = shlex.join([*COMMAND, *BARE, "--user", user, "/usr/bin/python3", "-c", show])
    Path("/tmp/seen-by-command").unlink(missing_ok=True)
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
    seen = Path("/tmp/seen-by-command").read_text().split()
    Path("/tmp/seen-by-command").unlink()
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
