# SPDX-License-Identifier: Apache-2.0
"""Show the progress of a pull: a bar on a terminal, elsewhere a line every ten seconds.

The download's progress is the size of its files. That of packing is the number of bytes
written, out of the total that merging has found.
"""

from __future__ import annotations

import os
import time

from .. import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

LINE_SECONDS = 10.0
_BAR_SECONDS = 0.2
_WIDTH = 16


def size(count: float) -> str:
    """Return a number of bytes with a unit, like 12 MB."""
    if count < 1e6:
        return f"{count / 1e3:.0f} kB"
    return f"{count / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"


def of(done: float, total: float) -> str:
    """Return `done of total`, both in the unit of the total."""
    unit, name, digits = (1e9, "GB", 1) if total >= 1e9 else (1e6, "MB", 0) if total >= 1e6 else (1e3, "kB", 0)
    return f"{min(done, total) / unit:.{digits}f} of {total / unit:.{digits}f} {name}"


class Progress:
    """Shows the progress on descriptor `fd`, with `prefix` before each line; `quiet` shows nothing."""

    def __init__(
        self,
        fd: int = 2,
        prefix: str = "slurm-ch: ",
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fd = fd
        self._prefix = prefix
        self._quiet = quiet
        self._clock = clock
        self._terminal = os.isatty(fd) and not quiet
        self._begin = self._shown = clock()
        self._drawn = False
        self.text = ""
        self.fetched = 0.0
        self.to_fetch = 0.0
        self.packed = 0.0
        self.to_pack = 0.0
        self._since = self._begin

    def line(self, text: str) -> None:
        """Show a line that stays, above the bar."""
        if not self._quiet:
            self._clear()
            self._write(log.printable(self._prefix + text) + "\n")

    def begin(self, to_fetch: float) -> None:
        """Start the count for a download of `to_fetch` bytes."""
        self.to_fetch, self.fetched, self._since = to_fetch, 0.0, self._clock()

    def show(self) -> None:
        """Update what is shown, unless that happened a moment ago."""
        now = self._clock()
        if now - self._shown < (_BAR_SECONDS if self._terminal else LINE_SECONDS):
            return
        self._shown = now
        self.text = self._words(now)
        self._draw(f"{self._bar()} {self.text}")

    def wait(self, holder: str) -> None:
        """Show that this process waits for another pull of the same image."""
        now = self._clock()
        if now - self._shown < (_BAR_SECONDS if self._terminal else LINE_SECONDS):
            return
        self._shown = now
        self._draw(f"waiting for the same pull on {holder}")

    def end(self) -> None:
        """Remove the bar."""
        self._clear()

    def seconds(self) -> float:
        """Return the seconds since this object was created."""
        return self._clock() - self._begin

    def _words(self, now: float) -> str:
        words = []
        if self.to_fetch:
            rate = self.fetched / max(now - self._since, 1e-3)
            speed = f", {size(rate)}/s" if self.fetched < self.to_fetch else ""
            words.append(f"downloaded {of(self.fetched, self.to_fetch)}{speed}")
        if self.to_pack:
            words.append(f"packed {of(self.packed, self.to_pack)}")
        return " | ".join(words) or "looking"

    def _bar(self) -> str:
        # Packing takes about as long as everything before it.
        parts = [done / total for done, total in ((self.fetched, self.to_fetch), (self.packed, self.to_pack)) if total]
        share = min(1.0, sum(min(1.0, part) for part in parts) / 2)
        filled = int(share * _WIDTH)
        return f"[{'#' * filled}{'-' * (_WIDTH - filled)}]"

    def _draw(self, text: str) -> None:
        if self._quiet:
            return
        text = log.printable(self._prefix + text)
        if self._terminal:
            columns = _columns(self._fd)
            self._write(f"\r{text[: columns - 1]}\033[K")
            self._drawn = True
        else:
            self._write(text + "\n")

    def _clear(self) -> None:
        if self._drawn:
            self._write("\r\033[K")
            self._drawn = False

    def _write(self, text: str) -> None:
        try:
            os.write(self._fd, text.encode("utf-8", "replace"))
        except OSError:
            # Nobody reads it.
            self._quiet = True


def _columns(fd: int) -> int:
    try:
        return os.get_terminal_size(fd).columns or 80
    except OSError:
        return 80
