# SPDX-License-Identifier: Apache-2.0
"""The command as it is installed, a link to the static program; as in an editable install; and `sbatch-wait`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from slurm_ch import agreement, paths

# What submits a batch job and waits for its end; and what goes before a line of shell for the same.
SBATCH_WAIT = str(Path(__file__).parent / "sbatch-wait")
WITH_SBATCH_WAIT = f'sbatch-wait() {{ {SBATCH_WAIT} "$@"; }}; '

_BIN = Path(__file__).parents[1] / "build/bin"


def _link(name: str) -> str:
    path = _BIN / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_symlink():
        new = path.with_name(f"{name}.{os.getpid()}")
        new.symlink_to(paths.CH_JOIN)
        new.rename(path)
    return str(path)


SLURM_CH = _link(agreement.SLURM_CH)
CH_RUN = _link(agreement.CH_RUN)
IN_PYTHON = str(Path(sys.executable).parent / agreement.SLURM_CH)
