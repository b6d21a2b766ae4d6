# SPDX-License-Identifier: Apache-2.0
"""plugstack.conf that names the plugin twice, as with Debian's include of plugstack.conf.d and an admin's own."""

from __future__ import annotations

import os
from pathlib import Path

from slurm_ch import paths
from slurm_ch.sandbox.cluster import Cluster


def test_a_second_load_is_silent_and_harmless(user: str, image_sqfs: Path, world_tmp: Path) -> None:
    link = world_tmp / "again.so"  # the same file by another name
    link.symlink_to(os.path.abspath(paths.PLUGIN))
    lines = [f"required {paths.PLUGIN} bind=/usr:/mnt", f"required {paths.PLUGIN}", f"required {link}"]
    with Cluster(nodes=1, plugstack_lines=lines) as own:
        for command, expected in (
            (["srun", "-Q", "true"], ""),
            (["srun", "-Q", "--overcommit", "-n3", f"--ch-image={image_sqfs}", "cat", "/marker"], "one\n" * 3),
            (["srun", "-Q", f"--ch-image={image_sqfs}", "sh", "-c", "test -e /mnt/bin && echo bound"], "bound\n"),
            (["sbatch", "--quiet", "--wait", "-o", "/dev/null", f"--ch-image={image_sqfs}", "--wrap=cat /marker"], ""),
        ):
            done = own.run(command, user=user, timeout=60)
            assert (done.returncode, done.stdout, done.stderr) == (0, expected, ""), done
        done = own.run(["srun", "-Q", "--ch-image=/nonexistent", "true"], user=user, timeout=60)
        assert (done.returncode, done.stderr.count("/nonexistent")) == (31, 1)
