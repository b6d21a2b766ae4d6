# SPDX-License-Identifier: Apache-2.0
"""MPI: Debian's MPICH and Open MPI in an image, over two nodes with four tasks each."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm_ch import paths
from slurm_ch.sandbox.cluster import Cluster
from tests import documented
from tests.small_images import make_image

LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")
NODES, PER_NODE = 2, 4
TASKS = NODES * PER_NODE

# The nodes are one machine to MPI, with one /dev/shm and one name; but ranks of two containers
# can't open each other's memory through /proc. MPICH 4.0 over TCP may never end, container or not.
ONE_MACHINE = {
    "UCX_TLS": "self,sysv",
    "OMPI_MCA_pml": "ob1",
    "OMPI_MCA_btl": "self,vader,tcp",
    "OMPI_MCA_btl_tcp_if_include": "lo",
}

# Slurm's PMIx now and then lets a rank of two nodes out of MPI_Init before another has set up its receiving end,
# which then calls NULL: 1 step in 40 to 140 without any container, 1 in 8 with SLURM_PMIX_DIRECT_CONN=false.
EARLY = ("Signal: Segmentation fault (11)", "Failing at address: (nil)")

PROGRAM = r"""
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
	int rank, size, sum, square, node, first = 0, nodes[64];

	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	square = rank * rank;
	MPI_Allreduce(&square, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
	node = atoi(getenv("SLURM_NODEID"));
	MPI_Allgather(&node, 1, MPI_INT, nodes, 1, MPI_INT, MPI_COMM_WORLD);
	while (nodes[first] != node)
		first++;
	printf("%s %s %s | %d %d %d | %d\n", getenv("SLURMD_NODENAME"), getenv("SLURM_PROCID"),
		getenv("SLURM_LOCALID"), rank, size, sum, first);
	MPI_Finalize();
	return 0;
}
"""

# Rank 0 waits while rank 1 reads its memory. They meet in a directory of the host's.
CMA = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <unistd.h>

static char secret[] = "shared memory";

int main(int argc, char **argv)
{
	char text[64] = "", read_here[sizeof(secret)] = "", *end;
	struct iovec here = { read_here, sizeof(secret) }, there = { NULL, sizeof(secret) };
	int fd;

	(void)argc;
	if (chdir(argv[1]))
		return 1;
	if (!strcmp(getenv("SLURM_PROCID"), "0")) {
		prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
		snprintf(text, sizeof(text), "%d %p", getpid(), (void *)secret);
		fd = open("there", O_WRONLY);
		if (write(fd, text, sizeof(text)) < 0 || close(fd))
			return 1;
		fd = open("back", O_RDONLY);
		return read(fd, text, 1) != 1;
	}
	fd = open("there", O_RDONLY);
	if (read(fd, text, sizeof(text)) < 0)
		return 1;
	there.iov_base = (void *)strtoull(strchr(text, ' ') + 1, NULL, 16);
	if (process_vm_readv(strtol(text, &end, 10), &here, 1, &there, 1, 0) < 0)
		printf("%s\n", strerror(errno));
	else
		printf("%s\n", read_here);
	fd = open("back", O_WRONLY);
	return write(fd, "", 1) != 1;
}
"""


def add(root: Path, program: Path) -> None:
    """Copy a program or library to its own place in the image, with the libraries that it needs."""
    said = subprocess.run(["ldd", program], check=False, capture_output=True, text=True).stdout
    for path in [program, *(Path(word) for word in said.split() if word.startswith("/"))]:
        to = root / str(path).lstrip("/")
        to.parent.mkdir(parents=True, exist_ok=True)
        if not to.exists():
            shutil.copy(path, to)


@pytest.fixture(scope="module")
def mpi_image(world_tmp: Path, user: str) -> Path:
    """An image with one program for each MPI, and nothing that their packages don't bring."""
    root = make_image(world_tmp / "mpi", "mpi")
    source = world_tmp / "program.c"
    source.write_text(PROGRAM)
    for name in ("mpich", "openmpi"):
        subprocess.run([f"mpicc.{name}", "-O", "-o", root / "bin" / f"{name}-program", source], check=True)
        add(root, root / "bin" / f"{name}-program")
    for plugins in ("openmpi/lib/openmpi3", "pmix2/lib/pmix", "ucx"):
        for path in sorted((LIBRARIES / plugins).glob("*.so*")):
            add(root, path)
    for data in ("/usr/share/openmpi", "/etc/openmpi", str(LIBRARIES / "pmix2/share")):
        shutil.copytree(data, root / data.lstrip("/"), symlinks=True)
    source.write_text(CMA)
    subprocess.run(["cc", "-O", "-static", "-o", root / "bin/cma", source], check=True)
    # Of a directory that is somebody else's, an overlay can't change the owner.
    subprocess.run(["chown", "-hR", f"{user}:", root], check=True)
    return root


@pytest.fixture(scope="module")
def mpi(world_tmp: Path, user: str, mpi_image: Path) -> Iterator[Callable[[str], str]]:
    """Run a line on two nodes whose spool is not in /tmp, IMG being the image."""
    parent = Path(tempfile.mkdtemp(dir="/var/lib", prefix="slurm-ch-mpi-"))
    parent.chmod(0o755)
    # What is one path to each node: PMIx's session files, and Open MPI's shared memory.
    for node in ("n1", "n2"):
        (world_tmp / f"tmp-{node}").mkdir()
        (world_tmp / f"tmp-{node}").chmod(0o1777)
    extra = f"TmpFS={world_tmp}/tmp-%n"
    try:
        with Cluster(
            nodes=NODES,
            cpus=PER_NODE,
            directory_parent=str(parent),
            slurm_conf_extra=extra,
            plugstack_lines=[f"required {paths.PLUGIN} pyxis=yes"],
        ) as own:

            def run(line: str) -> str:
                env = {**own.environ(user), "IMG": str(mpi_image), **ONE_MACHINE}
                for _ in range(3):
                    done = own.run(["bash", "-c", line], user=user, env=env, timeout=60)
                    if not all(text in done.stderr for text in EARLY):
                        break
                said = [line for line in done.stderr.splitlines() if not line.startswith("srun: job ")]
                assert (done.returncode, said) == (0, []), done
                return done.stdout

            yield run
    finally:
        parent.rmdir()


def expected() -> set[str]:
    total = sum(rank * rank for rank in range(TASKS))
    return {
        f"n{rank // PER_NODE + 1} {rank} {rank % PER_NODE} | {rank} {TASKS} {total} | {rank // PER_NODE * PER_NODE}"
        for rank in range(TASKS)
    }


SRUN = f"srun -N{NODES} --ntasks-per-node={PER_NODE} --ch-image=$IMG"


def test_mpich_with_pmi2(mpi: Callable[[str], str]) -> None:
    assert set(mpi(f"{SRUN} --mpi=pmi2 mpich-program").splitlines()) == expected()


def test_the_quickstarts_line(mpi: Callable[[str], str]) -> None:
    line = documented.blocks("docs/quickstart.rst", "task")["mpi"]
    line = line.replace("mpich.sqfs", "$IMG").replace("mpi-program", "mpich-program")
    assert set(mpi(line.replace("-n8", f"-N{NODES} -n8")).splitlines()) == expected()


def test_mpich_with_shared_memory_inside_a_node(mpi: Callable[[str], str]) -> None:
    out = mpi("unset UCX_TLS; srun -N1 -n4 --mpi=pmi2 --ch-image=$IMG mpich-program")
    assert {line.split(" | ")[1] for line in out.splitlines()} == {f"{rank} 4 14" for rank in range(4)}


@pytest.fixture
def pmix(mpi: Callable[[str], str], cluster: Cluster) -> bool:
    """Whether Slurm has its PMIx plugin. Debian's does, up to forky's."""
    there = "pmix" in mpi("srun --mpi=list 2>&1").split()
    assert there or cluster.version >= (26, 5)
    return there


def test_open_mpi_with_pmix(mpi: Callable[[str], str], world_tmp: Path, pmix: bool) -> None:
    """Files that PMIx shares with its server are not in the image, but must be visible: `mpi` allows no message."""
    if not pmix:
        return
    step = f"sh -c 'OMPI_MCA_btl_vader_backing_directory={world_tmp}/tmp-$SLURMD_NODENAME exec openmpi-program'"
    assert set(mpi(f"{SRUN} --mpi=pmix {step}").splitlines()) == expected()


def test_open_mpi_with_pmix_by_pyxis_options(mpi: Callable[[str], str], world_tmp: Path, pmix: bool) -> None:
    """Each task has its own rank, in a container of the step's and in one with a name; /tmp is each container's.

    The session files are seen, though they are below TmpFS; PMIx 5 has shared memory there.
    """
    if not pmix:
        return
    session = f"{world_tmp}/tmp-n?/spmix_appdir_*"
    step = (
        f"sh -c 'ls -d {session} > /dev/null || exit 3; OMPI_MCA_btl_vader_backing_directory=/tmp exec openmpi-program'"
    )
    srun = f"srun -N{NODES} --ntasks-per-node={PER_NODE} --container-image=$IMG --mpi=pmix"
    assert set(mpi(f"{srun} {step}").splitlines()) == expected()
    again = f'salloc -Q -N{NODES} --ntasks-per-node={PER_NODE} sh -c "{srun} --container-name=m true;'
    assert set(mpi(f'{again} {srun.replace("$IMG", "$IMG --container-name=m")} {step}"').splitlines()) == expected()


def test_open_mpi_with_pmix_in_a_container_that_runs(
    mpi: Callable[[str], str], world_tmp: Path, pmix: bool, user: str
) -> None:
    """Two steps, one after the other, in a container that a third one has made: each sees what is its own."""
    if not pmix:
        return
    place = world_tmp / "running-mpi"
    place.mkdir()
    place.chmod(0o777)
    subprocess.run(["mkfifo", "-m", "666", place / "up", place / "go"], check=True)
    named = "srun --overlap -N1 --container-name=running"
    step = f"{named} -n4 --mpi=pmix sh -c 'ls -d $PMIX_SERVER_TMPDIR > /dev/null && exec openmpi-program'"
    lines = f"""
    {named} -n1 --mpi=none --container-image=$IMG --container-mounts={place} sh -c 'echo up > {place}/up; read x < {place}/go' &
    read x < {place}/up
    {step}; {step}
    {named} -n1 --mpi=none sh -c 'grep -c /pmix /proc/self/mountinfo'
    echo > {place}/go; wait
    """
    script = place / "job.sh"
    script.write_text(f"#!/bin/bash\nexport OMPI_MCA_btl_vader_backing_directory=/tmp\n{lines}")
    script.chmod(0o755)
    out = mpi(f"salloc -Q -N1 -n4 {script}").splitlines()
    ranks = [line.split(" | ")[1] for line in out if "|" in line]
    assert sorted(ranks) == sorted([f"{rank} 4 14" for rank in range(4)] * 2)
    # What the first of them was shown has gone.
    assert out[-1] == "1"


def test_open_mpi_with_a_tmp_of_its_own(mpi: Callable[[str], str], world_tmp: Path, pmix: bool) -> None:
    """The session files, which Slurm makes below /tmp, or where SLURM_PMIX_TMPDIR says, are seen too."""
    if not pmix:
        return
    session = world_tmp / "session"
    session.mkdir()
    session.chmod(0o1777)
    step = f"sh -c 'ls {session} | sed s/_.*//; exec openmpi-program'"
    out = mpi(f"SLURM_PMIX_TMPDIR={session} srun -N1 -n4 --mpi=pmix --ch-private-tmp --ch-image=$IMG {step}")
    lines = sorted(out.splitlines())
    assert [line.split(" | ")[1] for line in lines if "|" in line] == [f"{rank} 4 14" for rank in range(4)]
    assert [line for line in lines if "|" not in line] == ["spmix"] * 4


def test_pmix_directories_are_there_once(mpi: Callable[[str], str], pmix: bool) -> None:
    if not pmix:
        return
    line = "ls -d $PMIX_SERVER_TMPDIR $PMIX_DSTORE_21_BASE_PATH > /dev/null && grep -c pmix /proc/self/mountinfo"
    assert mpi(f"srun --mpi=pmix --ch-image=$IMG sh -c '{line}'") == "1\n"
    # Without PMIx nothing of the kind is done.
    assert mpi("srun --ch-image=$IMG sh -c '! grep pmix /proc/self/mountinfo; ls /var'") == "spool\ntmp\n"


def test_ranks_of_a_node_read_each_others_memory(mpi: Callable[[str], str], user: str, world_tmp: Path) -> None:
    """MPI's CMA is allowed in one container, and not between two."""
    meeting = world_tmp / "meeting"
    meeting.mkdir()
    subprocess.run(["mkfifo", "-m", "666", meeting / "there", meeting / "back"], check=True)
    assert mpi(f"srun -N1 -n2 --ch-image=$IMG cma {meeting}") == "shared memory\n"
    alone = f"{Path(sys.executable).parent}/slurm-ch run $IMG -- cma {meeting}"
    assert mpi(f"srun -N1 -n2 {alone}") == "Operation not permitted\n"
    assert mpi(f"srun -N1 -n2 {alone.replace('run', 'run --join')}") == "shared memory\n"
