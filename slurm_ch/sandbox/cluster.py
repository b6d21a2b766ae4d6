# SPDX-License-Identifier: Apache-2.0
"""`Cluster`: a temporary Slurm cluster on this machine, as a context manager.

It runs a munged, a slurmctld, and a slurmd per virtual node, with their own key, sockets,
ports and temporary directory. It needs root, and an installed Slurm and munge, but
neither systemd nor cgroups.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from slurm_ch import agreement, paths
from slurm_ch.sandbox import config, machine
from slurm_ch.sandbox.clients import Clients, end
from slurm_ch.sandbox.machine import ClusterError
from slurm_ch.slurm.commands import parse_version

__all__ = ["Cluster", "ClusterError"]

START_SECONDS = 20.0
STOP_SECONDS = 20.0
SINFO_SECONDS = 10.0
JOBS_SECONDS = 5.0
ATTEMPTS = 5
LOG_LINES = 10
_POLL_SECONDS = 0.004
# From the message of a Slurm that allows only one slurmd per machine.
_ONE_SLURMD = "duplicated nodehostname"
_SUPERVISOR = os.path.join(os.path.dirname(os.path.abspath(__file__)), "supervisor.py")


class _AddressInUse(ClusterError):
    """Another process has taken a port between `free_ports` and the daemon's bind."""


class Cluster:
    """A Slurm cluster of `nodes` virtual nodes with `cpus` CPUs each; a context manager.

    `plugstack_lines`: plugstack.conf; None for a line that loads the installed plugin. `plugstack_of`: other lines
    for some nodes, by name. `slurm_conf_extra`: lines to add to slurm.conf. `node_conf`: text to add to the nodes'
    line there. `files`: further files next to slurm.conf (gres.conf, for instance), by name. `only_user`: only this
    user and root can use the cluster; None for every user of the machine. `directory_parent`: where the temporary
    directory is made.
    Raises ClusterError if it can't be started, with the end of the failed daemon's log.
    """

    def __init__(
        self,
        nodes: int = 1,
        cpus: int = 4,
        plugstack_lines: Sequence[str] | None = None,
        slurm_conf_extra: str = "",
        directory_parent: str = "/tmp",
        *,
        files: Mapping[str, str] | None = None,
        node_conf: str = "",
        plugstack_of: Mapping[str, Sequence[str]] | None = None,
        only_user: str | None = None,
    ) -> None:
        if plugstack_lines is None:
            plugstack_lines = [f"required {paths.PLUGIN}"] if os.path.exists(paths.PLUGIN) else []
        for name, count in (("nodes", nodes), ("cpus", cpus)):
            if type(count) is not int or count < 1:
                raise ClusterError(f"{name}={count!r}: not a whole number from 1 on")
        self.node_names = config.node_names(nodes)
        self.cpus = cpus
        self.plugstack_lines = list(plugstack_lines)
        self.slurm_conf_extra = slurm_conf_extra
        self.files = dict(files or {})
        self.node_conf = node_conf
        self.plugstack_of = dict(plugstack_of or {})
        self.only_user = only_user
        self.directory_parent = os.path.abspath(directory_parent)
        self.directory = ""
        self.conf = ""
        self.version: tuple[int, ...] = ()
        self._confs: dict[str, str] = {}  # slurm.conf and its variants, in their final form
        self._port = 0
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._clients = Clients()
        self._reports = b""
        self._deadline = 0.0

    def __enter__(self) -> Cluster:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start all daemons and wait until every node is idle. On failure, everything is removed; ClusterError."""
        if os.geteuid() != 0:
            raise ClusterError("must be root to start a cluster")
        daemons = {name: machine.program(name) for name in ("munged", "slurmctld", "slurmd", "sinfo")}
        done = subprocess.run([daemons["slurmctld"], "-V"], check=False, capture_output=True, text=True)
        self.version = parse_version(done.stdout)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._prepare()
                self._start_daemons(daemons)
                return
            except _AddressInUse:
                self.stop()
                if attempt == ATTEMPTS:
                    raise
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        """Cancel jobs, end the programs that `popen` started, kill the daemons, and remove the directory.

        Raises ClusterError if something can't be killed within `STOP_SECONDS`.
        """
        supervisor, self._supervisor = self._supervisor, None
        clients = self._clients.take_running()
        try:
            if supervisor is not None:
                try:
                    if clients:
                        _end_jobs(supervisor)
                        end(clients)
                finally:
                    # This makes the supervisor end everything, even if this process is interrupted.
                    _close(supervisor)
                supervisor.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise ClusterError(f"{self.directory}: cluster does not stop") from error
        finally:
            if self.directory:
                shutil.rmtree(self.directory, ignore_errors=True)

    # --- using the cluster ---------------------------------------------------

    def environ(self, user: str) -> dict[str, str]:
        """Return an environment for `user` with SLURM_CONF; only a few of the caller's variables are kept."""
        return {**machine.environ_of(user), "SLURM_CONF": self.conf}

    def popen(self, argv: Sequence[str], *, user: str, **kw: Any) -> subprocess.Popen[Any]:
        """Start `argv` as `user` with all their groups, in `/`; `kw` as for subprocess.Popen.

        If `user` isn't the caller, the program gets its own session, and can't read from the caller's
        terminal. To give it a terminal, pass it one (`terminal.Terminal`).

        When the cluster stops, programs that still run after its jobs have ended get SIGTERM, then SIGKILL.
        """
        return self._clients.start(argv, user=user, **{"env": self.environ(user), **kw})

    def run(
        self, argv: Sequence[str], *, user: str, timeout: float = 60, **kw: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run `argv` as `user`, and return its status and output; `kw` as for subprocess.Popen.

        After `timeout` seconds, its process group is ended, and subprocess.TimeoutExpired is raised:
        SIGTERM is sent first, so that srun cancels its job, then SIGKILL.
        """
        return self._clients.run(argv, user=user, timeout=timeout, **{"env": self.environ(user), **kw})

    def node_states(self) -> dict[str, str]:
        """Return each node's state as sinfo prints it (idle, mixed, down*).

        Raises ClusterError if slurmctld doesn't answer.
        """
        try:
            done = subprocess.run(
                [machine.program("sinfo"), "--noheader", "--Node", "--format=%N %T"],
                env={"PATH": machine.search_path(), "SLURM_CONF": self.conf},
                check=False,
                capture_output=True,
                text=True,
                timeout=SINFO_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise ClusterError(f"sinfo: no answer within {SINFO_SECONDS:.0f} s") from None
        if done.returncode != 0:
            raise ClusterError(done.stderr.strip() or "sinfo failed")
        return dict(line.split(maxsplit=1) for line in done.stdout.splitlines())

    def logs(self, name: str) -> str:
        """Return the log of the daemon `name` (munged, slurmctld, n1, ...)."""
        return self._log(name, ".log") or self._log(name, ".err")

    # --- starting ------------------------------------------------------------

    def _prepare(self) -> None:
        """Create the directory with all configuration files, and start the supervisor, which will remove it."""
        self._reports = b""
        nodes = len(self.node_names)
        self.directory = tempfile.mkdtemp(prefix="slurm-ch-", dir=self.directory_parent)
        self.conf = os.path.join(self.directory, "slurm.conf")
        if len(self._path("munge/socket")) > 100:
            raise ClusterError(f"{self.directory_parent}: path too long for a socket")
        # The directory is mode 0700 until everything is ready. Users need munge/ for its socket, but
        # must not read the key and slurmctld's state.
        secret, public = ["key", "state"], ["munge", "spool", "log", "run"]
        for name in secret + public + [f"spool/{node}" for node in self.node_names]:
            os.mkdir(self._path(name))
            os.chmod(self._path(name), 0o700 if name in secret else 0o755)
        self._write("key/munge.key", os.urandom(128), 0o400)
        self._port = machine.free_ports(nodes + 1)
        text = config.slurm_conf(
            directory=self.directory,
            port=self._port,
            nodes=nodes,
            cpus=self.cpus,
            memory=machine.memory_mib(),
            node_extra=self.node_conf,
            extra=self.slurm_conf_extra,
        )
        self._confs = {"slurm.conf": text}
        self._write("plugstack.conf", "".join(f"{x}\n" for x in self.plugstack_lines).encode())
        for name, lines in self.plugstack_of.items():
            self._write(f"plugstack.{name}.conf", "".join(f"{x}\n" for x in lines).encode())
            own = text.replace(self._path("plugstack.conf"), self._path(f"plugstack.{name}.conf"))
            self._confs[f"slurm.{name}.conf"] = own
        for name, text in self._confs.items():
            self._write(name, config.starting(text).encode())
        for name, text in self.files.items():
            self._write(name, text.encode())
        cgroup = config.cgroup_conf(self.version)
        if cgroup is not None and "cgroup.conf" not in self.files:
            self._write("cgroup.conf", cgroup.encode())
        self._supervisor = subprocess.Popen(
            [sys.executable or agreement.DEFAULT_PYTHON, "-I", "-S", _SUPERVISOR, self.directory],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            cwd="/",
            env={"PATH": machine.search_path(), "SLURM_CONF": self.conf},
            start_new_session=True,
            umask=0o022,
        )

    def _start_daemons(self, program: dict[str, str]) -> None:
        self._deadline = time.monotonic() + START_SECONDS
        self._daemon(
            "munged",
            [
                program["munged"],
                "--foreground",
                "--force",  # otherwise it refuses a socket that others can't reach yet
                f"--key-file={self._path('key/munge.key')}",
                f"--socket={self._path('munge/socket')}",
                f"--pid-file={self._path('run/munged.pid')}",
                f"--log-file={self._path('log/munged.log')}",
                f"--seed-file={self._path('key/seed')}",
            ],
        )
        self._wait("munged", lambda: os.path.exists(self._path("munge/socket")))
        self._daemon("slurmctld", [program["slurmctld"], "-D", "-f", self.conf])
        self._wait("slurmctld", lambda: self._port in machine.listening())
        for name in self.node_names:
            conf = self._path(f"slurm.{name}.conf") if name in self.plugstack_of else self.conf
            self._daemon(name, [program["slurmd"], "-D", "-f", conf, "-N", name])
        self._wait("slurmctld", self._all_idle)
        self._send_request({"hostname": socket.gethostname()})
        self._wait("supervisor", self._has_hostname)
        if self.only_user is not None:
            # Without the socket, nobody gets credentials. Its directory stays root's: its owner
            # could put another munged's socket there.
            os.chown(self._path("munge/socket"), machine.user_entry(self.only_user).pw_uid, -1)
            os.chmod(self._path("munge/socket"), 0o600)
        for name, text in self._confs.items():
            self._write(f"{name}.new", text.encode())
            os.replace(self._path(f"{name}.new"), self._path(name))
        os.chmod(self.directory, 0o755)

    def _all_idle(self) -> bool:
        try:
            states = self.node_states()
        except ClusterError:
            # Most likely another cluster's slurmctld has the port, and ours is about to exit with that error.
            return False
        return [states.get(name) for name in self.node_names] == ["idle"] * len(self.node_names)

    def _has_hostname(self) -> bool:
        """Whether the supervisor has restored the machine's host name."""
        line, newline, rest = self._reports.partition(b"\n")
        if not newline or line != b"hostname 0":
            return False
        self._reports = rest
        return True

    def _daemon(self, name: str, argv: list[str]) -> None:
        self._send_request({"name": name, "argv": argv, "log": self._path(f"log/{name}.err")})

    def _send_request(self, order: Mapping[str, object]) -> None:
        assert self._supervisor is not None and self._supervisor.stdin is not None
        self._supervisor.stdin.write(json.dumps(order).encode() + b"\n")

    def _wait(self, name: str, ready: Callable[[], bool]) -> None:
        """Wait until `ready()` is true; ClusterError if a daemon exits, or the time limit has passed."""
        while not ready():
            self._raise_if_exited()
            if time.monotonic() > self._deadline:
                self._raise_if_one_node_only(name)
                raise ClusterError(f"{name} is not ready after {START_SECONDS:.0f} s{self._end_of(name)}")

    def _raise_if_exited(self) -> None:
        """Wait a few milliseconds for a daemon's exit; ClusterError if one has exited."""
        assert self._supervisor is not None and self._supervisor.stdout is not None
        if not select.select([self._supervisor.stdout], [], [], _POLL_SECONDS)[0]:
            return
        self._reports += self._supervisor.stdout.read(4096) or b"supervisor 0\n"
        if b"\n" not in self._reports or self._reports.startswith(b"hostname "):
            return
        name, status = self._reports.split(b"\n")[0].decode().split()
        self._raise_if_one_node_only(name)
        text = f"{name} did not start ({_status(int(status))}){self._end_of(name)}"
        taken = "Address already in use" in self._log(name, ".err")
        raise (_AddressInUse if taken else ClusterError)(text)

    def _raise_if_one_node_only(self, name: str) -> None:
        """Raise ClusterError if this Slurm was built without support for several nodes on one machine."""
        text = self._log("slurmctld", ".err") + self._log(name, ".err")
        if len(self.node_names) > 1 and _ONE_SLURMD in text.lower():
            raise ClusterError(
                f"{len(self.node_names)} nodes on one machine need a Slurm that was built with"
                " --enable-multiple-slurmd, which this isn't: start one node (--nodes 1)"
            )

    def _end_of(self, name: str) -> str:
        lines = self._log(name, ".err").splitlines()[-LOG_LINES:]
        return "; its log ends:\n" + "\n".join(lines) if lines else ""

    # --- files ---------------------------------------------------------------

    def _path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def _log(self, name: str, suffix: str) -> str:
        try:
            with open(self._path(f"log/{name}{suffix}"), errors="replace") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def _write(self, name: str, data: bytes, mode: int = 0o644) -> None:
        with open(self._path(name), "xb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)


def _status(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"status {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def _close(supervisor: subprocess.Popen[bytes]) -> None:
    for pipe in (supervisor.stdin, supervisor.stdout):
        if pipe is not None:
            pipe.close()


def _end_jobs(supervisor: subprocess.Popen[bytes]) -> None:
    """Make the supervisor cancel all jobs, and wait until it reports that they have ended."""
    assert supervisor.stdin is not None and supervisor.stdout is not None
    try:
        supervisor.stdin.write(b'{"end": "jobs"}\n')
    except BrokenPipeError:
        return
    deadline = time.monotonic() + JOBS_SECONDS
    reply = b""
    while b"jobs" not in reply and (left := deadline - time.monotonic()) > 0:
        if select.select([supervisor.stdout], [], [], left)[0]:
            if not (data := supervisor.stdout.read(4096)):
                return
            reply += data
