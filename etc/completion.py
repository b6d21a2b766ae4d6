# SPDX-License-Identifier: Apache-2.0
"""Print the completion script of the shell that `_SLURM_CH_COMPLETE=SHELL_source` names."""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from slurm_ch.cli.main import slurm_ch

slurm_ch.main(prog_name="slurm-ch")
