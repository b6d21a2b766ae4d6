# SPDX-License-Identifier: Apache-2.0
"""A user stops the server of an image while it has a request: a process that waits for the answer can't be killed.

With a cgroup the step's end takes the server along. Without one (here) the site's `image_timeout=` has the kernel
end it, where the kernel can.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from slurm_ch import paths
from slurm_ch.sandbox.cluster import Cluster
from tests import leftovers

from .conftest import FULL, Record
from .harness import USER, wait, wait_for

# The first Linux that has FUSE_REQUEST_TIMEOUT.
SINCE = (6, 15)
# Each is a request, whatever the server or the kernel have kept of others.
LOOK_FOR_MUCH = "for i in $(seq 3000); do [ -e /nothing-$i ]; done"
# More than a container's start asks, fewer than these; each thread of the server counts its own.
REPLY = 200
# Twice as often as the kernel looks; and Slurm drains after 50.
TIMEOUT = 15

# Its 200th answer is never given: the server is stopped instead. It keeps the pid that it has.
STOPPING = f"""#!/bin/sh
server=$1
exec strace -D -f -o "${{0%/*}}/trace" -e trace=writev -e inject=writev:error=EAGAIN:signal=SIGSTOP:when={REPLY}+ \\
    {paths.NATIVE}/ch-squashfuse_ll "$@"
"""


def state(pid: int) -> str:
    """Return a process's state, one letter, or "" for one that is gone."""
    try:
        return re.search(r"^State:\s(\S)", Path(f"/proc/{pid}/status").read_text(), re.M)[1]  # type: ignore[index]
    except FileNotFoundError:
        return ""


if FULL:

    def test_a_stopped_server_ends_and_no_node_drains(image_sqfs: Path, world_tmp: Path, record: Record) -> None:
        assert tuple(map(int, re.findall(r"\d+", platform.release())[:2])) >= SINCE, "the kernel has no such timeout"
        server = world_tmp / "stopping" / "ch-squashfuse_ll"
        server.parent.mkdir()
        server.write_text(STOPPING)
        server.chmod(0o755)
        shutil.chown(server.parent, USER)
        trace = server.with_name("trace")
        line = f"required {paths.PLUGIN} squashfuse={server} image_timeout={TIMEOUT}"
        with Cluster(nodes=1, cpus=2, plugstack_lines=[line]) as cluster:
            assert cluster._supervisor is not None
            top = cluster._supervisor.pid
            daemons = set(leftovers.descendants(top))
            started = time.monotonic()
            srun = cluster.popen(
                ["srun", "--overcommit", "-n2", f"--ch-image={image_sqfs}", "sh", "-c", LOOK_FOR_MUCH],
                user=USER, env={**cluster.environ(USER), "PATH": "/usr/bin:/bin"}, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            )  # fmt: skip
            try:
                assert wait_for(lambda: trace.exists() and "stopped by SIGSTOP" in trace.read_text()), srun.poll()
                cluster.run(["scancel", "--user", USER], user=USER, timeout=20)
                # The kernel holds who waits for the answer: killed, and not to be got rid of.
                assert wait_for(lambda: "D" in map(state, leftovers.descendants(top)))
                assert wait(srun, 60) is not None
                # No process is left but the stopped server, which has lost its mount; Slurm is content.
                assert wait_for(lambda: set(cluster.node_states().values()) == {"idle"}, 90), cluster.node_states()
            finally:
                for pid in set(leftovers.descendants(top)) - daemons:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                srun.communicate()
            record("FUSE server stopped with a request in its hand, no cgroup", cases=1, failed=1, problems=0,
                   slowest=round(time.monotonic() - started, 2))  # fmt: skip
