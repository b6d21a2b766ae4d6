# SPDX-License-Identifier: Apache-2.0
"""`slurm-ch sandbox`: run a command, or a shell, in a temporary Slurm cluster."""

from __future__ import annotations

import os
import pwd
import select
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

import click

from slurm_ch import agreement, errors
from slurm_ch.sandbox.cluster import Cluster
from slurm_ch.sandbox.supervisor import (
    descendants,
    kill_descendants,
    new_session_keyring,
    set_child_subreaper,
    set_parent_death_signal,
)
from slurm_ch.sandbox.terminal import Terminal

# The terminal sends these to the command too. The sandbox must not end before the command, to clean up.
_FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT)
_FORWARDED = (signal.SIGTERM, signal.SIGHUP)
# A command that ignores a forwarded signal (an interactive shell does) is killed after this.
_GRACE_SECONDS = 5


class _Signals:
    """Handles the sandbox's signals: before the command starts, while it runs, and during the clean-up."""

    def __init__(self) -> None:
        # The command's pid; it is set to None before the command is reaped.
        self.command: int | None = None
        self.terminal: Terminal | None = None
        self.ending = False

    def install(self) -> None:
        """Install handlers, except for signals that are already ignored (by nohup): the command ignores these too."""
        for number in (*_FROM_TERMINAL, *_FORWARDED):
            if signal.getsignal(number) != signal.SIG_IGN:
                # A handler, never SIG_IGN: the command would inherit that.
                signal.signal(number, self._handle)
        signal.signal(signal.SIGALRM, self._kill)
        signal.signal(signal.SIGWINCH, self._terminal_changed)
        signal.signal(signal.SIGCONT, self._terminal_changed)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.command is not None:
            if number in _FORWARDED:
                self._send(signal.Signals(number))
                signal.alarm(_GRACE_SECONDS)
            elif self.terminal is not None:
                # The command has its own session, so the terminal's signal hasn't reached it.
                with suppress(ProcessLookupError):
                    os.killpg(self.terminal.foreground(self.command), number)
        elif not self.ending:
            # Only once: a second signal must not interrupt the clean-up.
            self.ending = True
            raise SystemExit(128 + number)

    def _kill(self, _number: int, _frame: FrameType | None) -> None:
        self._send(signal.SIGKILL)

    def _terminal_changed(self, number: int, _frame: FrameType | None) -> None:
        if self.terminal is not None:
            self.terminal.resize()
            if number == signal.SIGCONT:
                self.terminal.resume()

    def _send(self, number: signal.Signals) -> None:
        if self.command is not None:
            with suppress(ProcessLookupError):
                os.kill(self.command, number)


@click.command(context_settings={"allow_interspersed_args": False})
@click.option(
    "--nodes",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    metavar="N",
    help="Start N virtual nodes.",
)
@click.option(
    "--cpus",
    type=click.IntRange(1, 4096),
    default=4,
    show_default=True,
    metavar="N",
    help="CPUs per node; can be more than this machine has.",
)
@click.option("--user", metavar="USER", help="Run CMD as USER [default: the user who called sudo, or the caller].")
@click.option("--slurm-conf", multiple=True, metavar="LINE", help="Add LINE to slurm.conf; repeatable.")
@click.option(
    "--plugstack",
    multiple=True,
    metavar="LINE",
    help="Use LINE in plugstack.conf instead of the line of slurm_ch's plugin; repeatable.",
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- CMD...]")
def sandbox(
    *,
    nodes: int,
    cpus: int,
    user: str | None,
    slurm_conf: Sequence[str],
    plugstack: Sequence[str],
    command: Sequence[str],
) -> None:
    """Run CMD, or a shell, in a temporary Slurm cluster on this machine.

    The sandbox must be run as root. It starts munge, slurmctld and one slurmd per node in a
    temporary directory, and runs CMD as USER. Only USER and root can use the cluster. CMD gets only a
    few of the caller's variables (TERM, LANG, LC_*, TZ, PATH, ...) and, if USER is not the caller, a
    terminal of its own. When CMD ends, the cluster is removed. The exit status is CMD's.
    """
    entry = _entry(user)
    if os.geteuid() != 0:
        raise errors.ChError("sandbox: must be root")
    signals = _Signals()
    # As a subreaper, this process adopts CMD's orphans, and kills them at the end. Earlier children are spared.
    spared = frozenset(descendants(os.getpid()))
    set_child_subreaper(True)
    signals.install()
    cluster = Cluster(nodes, cpus, list(plugstack) or None, "\n".join(slurm_conf), only_user=entry.pw_name)
    try:
        with cluster:
            try:
                if not command:
                    click.echo(_greeting(cluster), err=True)
                status = _run(cluster, entry, command or (cluster.environ(entry.pw_name)["SHELL"],), signals)
            finally:
                signals.ending = True
    finally:
        kill_descendants(spared)
        set_child_subreaper(False)
    sys.exit(status)


def _entry(user: str | None) -> pwd.struct_passwd:
    """Return the password entry of `user`, or else of sudo's caller, or else of this process's user."""
    try:
        if user is not None:
            return pwd.getpwnam(user)
        sudo_user = os.environ.get("SUDO_USER")
        return pwd.getpwnam(sudo_user) if sudo_user else pwd.getpwuid(os.getuid())
    except KeyError:
        name = user or os.environ.get("SUDO_USER") or os.getuid()
        raise errors.UsageError(f"--user {name}: no such user") from None


def _greeting(cluster: Cluster) -> str:
    version = ".".join(map(str, cluster.version))
    return f"Slurm {version} on {', '.join(cluster.node_names)}; ends with this shell"


def _run(cluster: Cluster, entry: pwd.struct_passwd, argv: Sequence[str], signals: _Signals) -> int:
    """Run `argv` in the foreground and return its exit status, 128 + signal if killed."""
    directory = _directory(cluster, entry)
    # Block signals until the command's pid is known, so that they can be forwarded to it.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (*_FROM_TERMINAL, *_FORWARDED))
    other = entry.pw_uid != os.geteuid()
    terminal = Terminal(entry.pw_uid) if other else None

    def in_command() -> None:
        if terminal is not None:
            terminal.in_command()
            new_session_keyring()
        # The command ends if the sandbox is killed. Set after the change of uid, which clears it.
        set_parent_death_signal(signal.SIGHUP)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    streams = terminal.streams if terminal is not None else {}
    wake, wakeup = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    try:
        command = cluster.popen(
            argv, user=entry.pw_name, cwd=directory, umask=-1, preexec_fn=in_command, start_new_session=other, **streams
        )
        signals.command, signals.terminal = command.pid, terminal
    except OSError as error:
        failure = errors.ChError(f"{argv[0]}: {error.strerror}")
        missing = isinstance(error, FileNotFoundError)
        failure.code = agreement.EXIT_NOT_FOUND if missing else agreement.EXIT_CANNOT_EXECUTE
        raise failure from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        while not _has_ended(command.pid):
            _wait(wake, terminal)
    finally:
        signals.ending = True
        signals.command = signals.terminal = None
        if terminal is not None:
            terminal.close()
    signal.alarm(0)
    status = command.returncode = os.waitstatus_to_exitcode(os.waitpid(command.pid, 0)[1])
    return status if status >= 0 else 128 - status


def _has_ended(command: int) -> bool:
    """Whether the command has ended; it isn't reaped. Orphans are reaped: each srun leaves one."""
    while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        if ended.si_pid == command:
            return True
        os.waitpid(ended.si_pid, 0)
    return False


def _wait(wake: int, terminal: Terminal | None) -> None:
    """Wait for a signal; meanwhile, relay the terminal."""
    if terminal is not None:
        terminal.wait(wake)
    else:
        select.select([wake], [], [])
    with suppress(BlockingIOError):
        os.read(wake, 4096)


def _directory(cluster: Cluster, entry: pwd.struct_passwd) -> str:
    """Return the first directory that the user may enter: this process's, the user's home, or `/`."""
    for path in (_working_directory(), entry.pw_dir):
        # Tried as the user, because root may enter everything, and by a whole path, because its parents matter.
        entered = cluster.run(["/bin/sh", "-c", 'cd -- "$1"', "sh", path], user=entry.pw_name)
        if entered.returncode == 0:
            return path
    return "/"


def _working_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "/"  # the directory has been removed
