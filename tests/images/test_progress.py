# SPDX-License-Identifier: Apache-2.0
"""The progress of a pull: a bar on a terminal, elsewhere a line every ten seconds."""

from __future__ import annotations

import os
import pty
import tty
from contextlib import suppress

from slurm_ch.images.progress import Progress, of, size


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def run(progress: Progress, clock: Clock) -> None:
    progress.line("docker://x is sha256:1, 475 MB; pulling")
    progress.begin(475e6)
    for step in range(1, 20):
        clock.now += 2
        progress.fetched = min(475e6, step * 50e6)
        if step > 10:
            progress.to_pack, progress.packed = 1.7e9, (step - 10) * 0.2e9
        progress.show()
    progress.wait("n7: downloaded 3 of 9 MB")
    progress.end()


def test_elsewhere_a_line_every_ten_seconds() -> None:
    reader, writer = os.pipe()
    clock = Clock()
    run(Progress(writer, "srun: slurm_ch: ", clock=clock), clock)
    os.close(writer)
    with open(reader) as file:
        assert file.read().splitlines() == [
            "srun: slurm_ch: docker://x is sha256:1, 475 MB; pulling",
            "srun: slurm_ch: [####------------] downloaded 250 of 475 MB, 25 MB/s",
            "srun: slurm_ch: [########--------] downloaded 475 of 475 MB",
            "srun: slurm_ch: [############----] downloaded 475 of 475 MB | packed 1.0 of 1.7 GB",
        ]


def test_on_a_terminal_a_bar_that_goes() -> None:
    master, slave = pty.openpty()
    tty.setraw(slave)
    clock = Clock()
    run(Progress(slave, clock=clock), clock)
    os.close(slave)
    data = b""
    with suppress(OSError):  # EIO is its end
        while more := os.read(master, 4096):
            data += more
    os.close(master)
    text = data.decode()
    drawn = text.split("\r")
    assert len(drawn) > 15 and drawn[-1] == "\033[K"
    assert all(len(one) < 80 + 8 for one in drawn)


def test_nothing_at_all() -> None:
    reader, writer = os.pipe()
    clock = Clock()
    run(Progress(writer, quiet=True, clock=clock), clock)
    os.close(writer)
    assert os.read(reader, 10) == b""
    # Nobody looks any more: that is no error.
    os.close(reader)
    reader, writer = os.pipe()
    os.close(reader)
    run(Progress(writer, clock=clock), clock)
    os.close(writer)


def test_sizes() -> None:
    assert [size(count) for count in (0, 999_000, 1e6, 29e6, 1.7e9)] == ["0 kB", "999 kB", "1 MB", "29 MB", "1.7 GB"]
    assert of(5e6, 2e6) == "2 of 2 MB"
