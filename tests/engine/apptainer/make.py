# SPDX-License-Identifier: Apache-2.0
"""Make app.sif again, as root, by the Apptainer of Debian sid: `python -m tests.engine.apptainer.make`.

For x86_64. The scripts that Apptainer would add for its own use are left out: what is in the
file is ours, but for the comment above the environment's lines.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from bench import pull

HERE = Path(__file__).parent
_THEIRS = (
    ".singularity.d/actions",
    ".singularity.d/startscript",
    ".singularity.d/env/[!9]*",
    ".singularity.d/env/9[!0]*",
)
_SMALL = "-static -nostdlib -ffreestanding -fno-stack-protector -fcf-protection=none -s -Wl,--build-id=none,-z,noseparate-code"


def program(to: Path) -> None:
    """Compile greet.c."""
    words = ["cc", "-std=gnu11", "-Os", "-Wall", "-Wextra", "-Werror", *_SMALL.split()]
    subprocess.run([*words, "-o", to, HERE / "greet.c"], check=True)


def main() -> None:
    """Make the file."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        place = work / "place"
        place.mkdir()
        program(place / "greet")
        shutil.copy(HERE / "app.def", place)
        excluded = " ".join(("-wildcards", *(f"-e {one}" for one in _THEIRS)))
        subprocess.run(
            ["bwrap", "--bind", pull.tree(work), "/", "--dev-bind", "/dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp",
             "--bind", place, "/pull", "--chdir", "/pull", "--clearenv", "--setenv", "PATH", "/usr/bin:/bin",
             "apptainer", "build", "--mksquashfs-args", excluded, "app.sif", "app.def"],
            check=True,
        )  # fmt: skip
        shutil.copy(place / "app.sif", HERE / "app.sif")
        (HERE / "app.sif").chmod(0o644)


if __name__ == "__main__":
    main()
