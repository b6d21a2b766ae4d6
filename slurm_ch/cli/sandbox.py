# SPDX-License-Identifier: Apache-2.0
"""`slurm-ch sandbox`: a command, or a shell, inside a Slurm cluster that lasts as long as it."""

from __future__ import annotations

import os
import pwd
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

import click

from slurm_ch import errors
from slurm_ch.sandbox.cluster import Cluster
from slurm_ch.sandbox.supervisor import (
    descendants,
    kill_descendants,
    set_child_subreaper,
    set_parent_death_signal,
)

# The terminal sends these to the command too; the sandbox must outlive it to clean up.
_FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT)
_FORWARDED = (signal.SIGTERM, signal.SIGHUP)
# A command that ignores a forwarded signal (an interactive shell does) is killed after this.
_GRACE_SECONDS = 5


class _Signals:
    """What a signal means to the sandbox in each of its phases."""

    def __init__(self) -> None:
        # A pidfd: the command may have been reaped when the signal comes.
        self.command: int | None = None
        self.ending = False

    def install(self) -> None:
        """Handle what isn't ignored already (as nohup does): that stays so for the command too."""
        for number in (*_FROM_TERMINAL, *_FORWARDED):
            if signal.getsignal(number) != signal.SIG_IGN:
                # Not SIG_IGN, ever: the command would inherit it.
                signal.signal(number, self._handle)
        signal.signal(signal.SIGALRM, self._kill)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.command is not None:
            if number in _FORWARDED:
                self._send(signal.Signals(number))
                signal.alarm(_GRACE_SECONDS)
        elif not self.ending:
            # Once: a second one must not interrupt the clean-up.
            self.ending = True
            raise SystemExit(128 + number)

    def _kill(self, _number: int, _frame: FrameType | None) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        if self.command is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.command, number)


@click.command(context_settings={"allow_interspersed_args": False})
@click.option(
    "--nodes",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    metavar="N",
    help="Virtual nodes to start.",
)
@click.option(
    "--cpus",
    type=click.IntRange(1, 4096),
    default=4,
    show_default=True,
    metavar="N",
    help="CPUs of each node; may be more than this machine has.",
)
@click.option("--user", metavar="USER", help="Who runs CMD [default: the caller before sudo].")
@click.option("--slurm-conf", multiple=True, metavar="LINE", help="Line to add to slurm.conf; repeatable.")
@click.option(
    "--plugstack",
    multiple=True,
    metavar="LINE",
    help="Line of plugstack.conf instead of our own plugin's; repeatable.",
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
    """Run CMD (or your shell) inside a throw-away Slurm cluster on this machine.

    Starts munge, slurmctld and a slurmd per node in a temporary directory, as
    root, and CMD as USER. When CMD ends, everything is removed; the exit status
    is CMD's.
    """
    entry = _entry(user)
    if os.geteuid() != 0:
        raise errors.ChError("sandbox: must be root")
    signals = _Signals()
    # What CMD leaves behind becomes ours, to be killed; not what was here before.
    spared = frozenset(descendants(os.getpid()))
    set_child_subreaper(True)
    signals.install()
    cluster = Cluster(nodes, cpus, list(plugstack) or None, "\n".join(slurm_conf))
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
    """Return the password entry of `user`, of sudo's caller or of ours."""
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
    # A signal must find either no command, or one that we know to forward it to.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (*_FROM_TERMINAL, *_FORWARDED))

    def in_command() -> None:
        # A killed sandbox takes its command along; set here as a new uid clears it.
        set_parent_death_signal(signal.SIGHUP)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    try:
        command = cluster.popen(argv, user=entry.pw_name, cwd=directory, umask=-1, preexec_fn=in_command)
        signals.command = os.pidfd_open(command.pid)
    except OSError as error:
        failure = errors.ChError(f"{argv[0]}: {error.strerror}")
        missing = isinstance(error, FileNotFoundError)
        failure.code = errors.EXIT_NOT_FOUND if missing else errors.EXIT_CANNOT_EXECUTE
        raise failure from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    # Reap the orphans of CMD too (each srun leaves one), or a long session fills up with them.
    while (ended := os.wait())[0] != command.pid:
        pass
    signals.ending = True
    signals.command = None
    signal.alarm(0)
    status = command.returncode = os.waitstatus_to_exitcode(ended[1])
    return status if status >= 0 else 128 - status


def _directory(cluster: Cluster, entry: pwd.struct_passwd) -> str:
    """Return the first of here, home and `/` that the user may enter."""
    for path in (_here(), entry.pw_dir):
        # Asked as the user, from the top: root passes every check, and parents count.
        entered = cluster.run(["/bin/sh", "-c", 'cd -- "$1"', "sh", path], user=entry.pw_name)
        if entered.returncode == 0:
            return path
    return "/"


def _here() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "/"  # removed under our feet
