# SPDX-License-Identifier: Apache-2.0
"""A pseudoterminal for a command of another user, so that the command has no access to root's terminal.

A process can inject input into its controlling terminal (TIOCSTI), and read what is typed at any
terminal that it has open. So the command of another user gets its own session, and a
pseudoterminal in place of each standard stream that is a terminal. This module relays between
the two. The command inherits standard streams that are not terminals.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import termios
from contextlib import suppress
from typing import Any

_CHUNK = 65536
_LAST_READS = 64
# The interval at which a sandbox in the background checks whether it is in the foreground: bash's `fg` sends no signal
# to a process that runs.
_POLL_MILLISECONDS = 500


class Terminal:
    """The pseudoterminal for a command that runs as `uid`; there is none if no standard stream is a terminal."""

    def __init__(self, uid: int) -> None:
        ours = [stream for stream in (0, 1, 2) if os.isatty(stream)]
        # Without standard input from a terminal, the command has no controlling terminal.
        self.controls = 0 in ours
        # Only with standard output to it: otherwise, the next command of a pipeline would write to a raw terminal.
        self._raw = self.controls and 1 in ours
        self._saved: list[Any] | None = None
        self._reads = self.controls
        self._pending = b""
        self._out = next((stream for stream in (1, 2, 0) if stream in ours), -1)
        self._master = self._slave = -1
        self.streams: dict[str, int] = {}
        if ours:
            self._master, self._slave = os.openpty()
            os.set_blocking(self._master, False)
            os.fchown(self._slave, uid, -1)
            os.fchmod(self._slave, 0o600)
            self._copy_settings(ours[0])
            self.streams = {
                name: self._slave for stream, name in enumerate(("stdin", "stdout", "stderr")) if stream in ours
            }

    def _copy_settings(self, ours: int) -> None:
        """Copy our terminal's settings; if ours won't be raw, it echoes and translates line ends, so turn that off."""
        with suppress(OSError, termios.error):
            settings = termios.tcgetattr(ours)
            if not self._raw:
                settings[1] &= ~termios.OPOST
                settings[3] &= ~termios.ECHO
            termios.tcsetattr(self._slave, termios.TCSANOW, settings)
            self.resize()

    def in_command(self) -> None:
        """Make this the session's controlling terminal; call it in the command's process, a session leader."""
        if self.controls:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def foreground(self, leader: int) -> int:
        """Return the process group in the pseudoterminal's foreground, or else `leader`; never this process's."""
        group = 0
        if self.controls:
            with suppress(OSError):
                group = os.tcgetpgrp(self._master)
        return group if group > 1 else leader

    # --- our own terminal ----------------------------------------------------

    def resize(self) -> None:
        """Set the pseudoterminal's size to our terminal's."""
        if self._master >= 0:
            with suppress(OSError):
                size = fcntl.ioctl(self._out, termios.TIOCGWINSZ, b"\0" * 8)
                fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def resume(self) -> None:
        """Make our terminal raw if this process is in its foreground; call it at the start and after SIGCONT."""
        if not self._raw or not _in_foreground():
            return
        with suppress(termios.error):
            settings = termios.tcgetattr(0)
            if self._saved is None:
                self._saved = [*settings]
            _make_raw(settings)
            termios.tcsetattr(0, termios.TCSADRAIN, settings)
        self.resize()

    def close(self) -> None:
        """Write the remaining output, and restore our terminal's settings."""
        if self._master < 0:
            return
        # Limited, because processes that the command has left may go on writing. A terminal's buffer is smaller.
        for _ in range(_LAST_READS):
            if not self._show():
                break
        if self._saved is not None and _in_foreground():
            with suppress(termios.error):
                # TCSAFLUSH discards the terminal's answers to the command's queries: root's shell must not read them.
                termios.tcsetattr(0, termios.TCSAFLUSH, self._saved)
        os.close(self._master)
        os.close(self._slave)
        self._master = self._slave = -1

    # --- the relay -----------------------------------------------------------

    def wait(self, wake: int) -> None:
        """Relay until `wake` is readable."""
        while True:
            poller = select.poll()
            poller.register(wake, select.POLLIN)
            reading = self._reads and not self._pending
            here = reading and _in_foreground()
            if here:
                if self._raw and self._saved is None:
                    self.resume()
                poller.register(0, select.POLLIN)
            if self._master >= 0:
                poller.register(self._master, select.POLLIN | (select.POLLOUT if self._pending else 0))
            ready = dict(poller.poll(_POLL_MILLISECONDS if reading and not here else None))
            if 0 in ready:
                self._read()
            if ready.get(self._master, 0) & select.POLLOUT:
                self._type()
            if ready.get(self._master, 0) & ~select.POLLOUT:
                self._show()
            if wake in ready:
                return

    def _read(self) -> None:
        try:
            data = os.read(0, _CHUNK)
        except OSError:
            data = b""
        if data:
            self._pending = data
        elif self._raw:
            # Our terminal is gone. If it isn't the controlling one, the kernel sends no SIGHUP, so send it here.
            self._reads = False
            os.kill(os.getpid(), signal.SIGHUP)
        else:
            # Ctrl-D at our terminal, which isn't raw: pass it on.
            with suppress(termios.error):
                self._pending = termios.tcgetattr(self._slave)[6][termios.VEOF]

    def _type(self) -> None:
        try:
            self._pending = self._pending[os.write(self._master, self._pending) :]
        except OSError as error:
            if error.errno != errno.EAGAIN:
                self._pending = b""

    def _show(self) -> bool:
        """Copy available output of the command to our terminal; return whether there was any."""
        try:
            data = os.read(self._master, _CHUNK)
        except OSError:
            return False
        while data:
            try:
                data = data[os.write(self._out, data) :]
            except BlockingIOError:
                select.select([], [self._out], [])
            except OSError:
                return False  # our terminal is gone
        return True


def _in_foreground() -> bool:
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return True  # not the controlling terminal: reading from it doesn't stop this process


def _make_raw(settings: list[Any]) -> None:
    """Change termios settings as cfmakeraw(3) does."""
    off = (
        termios.BRKINT | termios.ICRNL | termios.IGNBRK | termios.IGNCR | termios.INLCR | termios.ISTRIP
        | termios.IXON | termios.PARMRK,
        termios.OPOST,
        termios.CSIZE | termios.PARENB,
        termios.ECHO | termios.ECHONL | termios.ICANON | termios.IEXTEN | termios.ISIG,
    )  # fmt: skip
    for place, bits in enumerate(off):
        settings[place] &= ~bits
    settings[2] |= termios.CS8
