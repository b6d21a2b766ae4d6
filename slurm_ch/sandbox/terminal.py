# SPDX-License-Identifier: Apache-2.0
"""A terminal of its own for a command of another user: what root types at is never that user's.

A process can type into its controlling terminal (TIOCSTI), and read what is typed at any
terminal that it has open. So the command of another user gets a session of its own, and a
pseudoterminal in place of each standard stream that is a terminal of ours; this relays between
the two. Streams that are no terminals are the command's as they are.
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
# How soon a sandbox in the background finds itself in the foreground: bash's `fg` says nothing to one that runs.
_LOOK_MILLISECONDS = 500


class Terminal:
    """The pseudoterminal of one command that runs as `uid`; without a terminal among our streams, none."""

    def __init__(self, uid: int) -> None:
        ours = [stream for stream in (0, 1, 2) if os.isatty(stream)]
        # With no terminal to read from, the command has none that controls it.
        self.controls = 0 in ours
        # Else what comes after us in a pipeline would find the terminal raw.
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
        """Begin as our terminal is; where ours isn't raw, it echoes and ends lines itself."""
        with suppress(OSError, termios.error):
            settings = termios.tcgetattr(ours)
            if not self._raw:
                settings[1] &= ~termios.OPOST
                settings[3] &= ~termios.ECHO
            termios.tcsetattr(self._slave, termios.TCSANOW, settings)
            self.resize()

    def in_command(self) -> None:
        """Become the session's terminal: called in the command, when it leads its session."""
        if self.controls:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def foreground(self, leader: int) -> int:
        """Return the process group that Ctrl-C is for, that of `leader` if there is no other; never ours."""
        group = 0
        if self.controls:
            with suppress(OSError):
                group = os.tcgetpgrp(self._master)
        return group if group > 1 else leader

    # --- our own terminal ----------------------------------------------------

    def resize(self) -> None:
        """Give the pseudoterminal our terminal's size."""
        if self._master >= 0:
            with suppress(OSError):
                size = fcntl.ioctl(self._out, termios.TIOCGWINSZ, b"\0" * 8)
                fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def resume(self) -> None:
        """Take our terminal over if we are in its foreground: at the start, and when continued after a stop."""
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
        """Show what is still to be shown, and put our terminal back as it was."""
        if self._master < 0:
            return
        # What others left behind may go on writing; a terminal holds less than this.
        for _ in range(_LAST_READS):
            if not self._show():
                break
        if self._saved is not None and _in_foreground():
            with suppress(termios.error):
                # What it answers to the command's questions isn't for root's shell to read.
                termios.tcsetattr(0, termios.TCSAFLUSH, self._saved)
        os.close(self._master)
        os.close(self._slave)
        self._master = self._slave = -1

    # --- the relay -----------------------------------------------------------

    def wait(self, wake: int) -> None:
        """Relay until there is something to read from `wake`."""
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
            ready = dict(poller.poll(_LOOK_MILLISECONDS if reading and not here else None))
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
            # Our terminal is gone. It may not be our controlling one: nobody else would tell us.
            self._reads = False
            os.kill(os.getpid(), signal.SIGHUP)
        else:
            # Ctrl-D at ours, which isn't raw: the same at the command's.
            with suppress(termios.error):
                self._pending = termios.tcgetattr(self._slave)[6][termios.VEOF]

    def _type(self) -> None:
        try:
            self._pending = self._pending[os.write(self._master, self._pending) :]
        except OSError as error:
            if error.errno != errno.EAGAIN:
                self._pending = b""

    def _show(self) -> bool:
        """Show what there is of the command's output; whether there was any."""
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
        return True  # not our controlling terminal: it stops nobody


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
