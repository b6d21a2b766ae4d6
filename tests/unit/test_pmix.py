# SPDX-License-Identifier: Apache-2.0
"""What PMIx must see, from the names in a task's environment."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_ch.engine import pmix

SPOOL = "/var/spool/slurmd/pmix.7.0"
SLURM = {"SLURM_JOB_UID": "1001", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, []),
        ({"PMIX_SERVER_TMPDIR": SPOOL + "/", "PMIX_DSTORE_21_BASE_PATH": SPOOL + "//dstore"}, [SPOOL]),
        ({"PMIX_DSTORE_21_BASE_PATH": SPOOL + "/ds21", "PMIX_SERVER_TMPDIR": SPOOL}, [SPOOL]),
        ({"PMIX_SERVER_TMPDIR": SPOOL, "PMIX_DSTORE_ESH_BASE_PATH": SPOOL + "x"}, [SPOOL, SPOOL + "x"]),
        # The host's /tmp is shown or isn't; that is the user's choice.
        ({"PMIX_SYSTEM_TMPDIR": "/tmp", "PMIX_SERVER_TMPDIR": "/"}, []),
        ({"PMIX_SYSTEM_TMPDIR": "/run/pmix"}, ["/run/pmix"]),
        ({"PMIX_SERVER_TMPDIR": "relative", "PMIX_SYSTEM_TMPDIR": ""}, []),
        ({**SLURM, "SLURM_CONF": "/none"}, ["/tmp/spmix_appdir_1001_7.0"]),
        ({**SLURM, "SLURM_CONF": "/none", "SLURM_PMIX_TMPDIR": "/scratch"}, ["/scratch/spmix_appdir_1001_7.0"]),
        ({"PMIX_SECURITY_MODE": "native"}, []),
        ({"PMIX_SECURITY_MODE": "munge,native"}, []),
    ],
)
def test_directories(env: dict[str, str], expected: list[str]) -> None:
    assert pmix.directories(env) == expected


@pytest.mark.parametrize(
    ("slurm", "mpi", "base"),
    [
        ("ClusterName=c\n", None, "/tmp"),
        ("ClusterName=c\ntmpfs=/scratch/%n # local\n", None, "/scratch/n7"),
        ("TmpFS=/scratch\n", "PMIxDebug=1\n", "/scratch"),
        ("TmpFS=/scratch\n", "PMIxCliTmpDirBase=/nvme/%h\n", "/nvme/n7"),
    ],
)
def test_session_files_are_where_the_site_has_them(tmp_path: Path, slurm: str, mpi: str | None, base: str) -> None:
    (tmp_path / "slurm.conf").write_text(slurm)
    if mpi is not None:
        (tmp_path / "mpi.conf").write_text(mpi)
    env = {**SLURM, "SLURM_CONF": f"{tmp_path}/slurm.conf", "SLURMD_NODENAME": "n7"}
    assert pmix.directories(env) == [f"{base}/spmix_appdir_1001_7.0"]
    assert pmix.directories({**env, "SLURM_PMIX_TMPDIR": "/mine"}) == ["/mine/spmix_appdir_1001_7.0"]


@pytest.mark.parametrize(
    ("mode", "shown", "needed"),
    [("", [], False), ("native", [], False), ("munge,native", ["/run/munge"], False), ("munge", ["/run/munge"], True)],
)
def test_munge_is_shown_only_where_the_relay_is_wanted(mode: str, shown: list[str], needed: bool) -> None:
    """Who reaches munge can submit jobs, as with the relay; most PMIx servers know another way."""
    env = {"PMIX_SECURITY_MODE": mode}
    assert (pmix.directories(env), pmix.directories(env, munge=True), pmix.needs_munge(env)) == ([], shown, needed)


@given(st.dictionaries(st.sampled_from([*pmix._VARIABLES, *SLURM, "SLURM_PMIX_TMPDIR"]), st.text(max_size=12)))
def test_whatever_the_names_none_is_the_root_or_tmp(env: dict[str, str]) -> None:
    found = pmix.directories({"SLURM_CONF": "/none", **env})
    assert not {"/", "//", "/tmp", "//tmp"} & set(found)
    assert len(found) == len(set(found))
