# SPDX-License-Identifier: Apache-2.0
"""pyxis' scripts, unchanged: the kinds that are in public, with stubs for what they start."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm_ch import paths
from slurm_ch.sandbox.cluster import Cluster
from tests.small_images import make_image, squash

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Good = Callable[..., str]

WAITING = re.compile(r"^srun: job \d+ (queued and waiting for|has been allocated) resources\n", re.MULTILINE)

# What `enroot import` leaves of an image with ENV, WORKDIR, ENTRYPOINT and CMD.
ENVIRONMENT = """\
PATH=/opt/app/bin:/bin
FOO=image
LANG=C.UTF-8
PYTORCH_VERSION=2.1
ONLY_HERE=a b"c
CUDA_VISIBLE_DEVICES=all
"""
RC = """\
mkdir -p "/workspace" 2> /dev/null
cd "/workspace" && unset OLDPWD || exit 1

if [ -s /etc/rc.local ]; then
    . /etc/rc.local
fi

if [ $# -gt 0 ]; then
    exec '/opt/app/bin/entry' "$@"
else
    exec '/opt/app/bin/entry' 'sh'
fi
"""


@pytest.fixture(scope="module")
def enroots(world_tmp: Path) -> Path:
    """A SquashFS file as `enroot import` makes it."""
    root = make_image(world_tmp / "enroots", "enroot's")
    (root / "etc/environment").write_text(ENVIRONMENT)
    (root / "etc/rc").write_text(RC)
    (root / "etc/rc.local").touch()
    (root / "etc/fstab").touch()
    (root / "workspace").mkdir()
    (root / "opt/app/bin").mkdir(parents=True)
    (root / "opt/app/bin/entry").write_text(
        '#!/bin/sh\necho entrypoint\nexport BY_ENTRY=yes FOO="$FOO+entry" SLURM_PROCID=9\ncd /opt\nexec "$@"\n'
    )
    for name in ("bin/bash", "opt/app/bin/bash"):
        (root / name).write_text('#!/bin/sh\nexec /bin/sh "$@"\n')
        (root / name).chmod(0o755)
    for name in ("python3", "torchrun"):
        (root / "opt/app/bin" / name).write_text(
            '#!/bin/sh\necho "${0##*/} $* rank=$RANK/$WORLD_SIZE local=$LOCAL_RANK at=$MASTER_ADDR:$MASTER_PORT in $PWD"\n'
        )
    for one in (root / "opt/app/bin").iterdir():
        one.chmod(0o755)
    (root / "tmp").chmod(0o1777)
    return squash(root, world_tmp / "nvidia+pytorch+24.01.sqsh")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes of a site that has pyxis' options."""
    with Cluster(nodes=2, cpus=8, plugstack_lines=[f"required {paths.PLUGIN} pyxis=yes"]) as running:
        yield running


@pytest.fixture(scope="module")
def work(user: str, world_tmp: Path) -> Path:
    """A directory of the user's, shared by the nodes."""
    path = world_tmp / "project"
    path.mkdir()
    shutil.chown(path, user)
    return path


@pytest.fixture
def sh(cluster: Cluster, user: str, enroots: Path, work: Path) -> Run:
    def run(line: str) -> subprocess.CompletedProcess[str]:
        env = {**cluster.environ(user), "IMG": str(enroots), "PATH": "/usr/bin:/bin", "LC_ALL": "POSIX", "FOO": "job"}
        done = cluster.run(["bash", "-c", f"cd {work}; {line}"], user=user, timeout=60, env=env)
        # What the job before may still have of a node.
        done.stderr = WAITING.sub("", done.stderr)
        return done

    return run


@pytest.fixture
def good(sh: Run) -> Good:
    def run(line: str) -> str:
        done = sh(line)
        assert (done.returncode, done.stderr) == (0, ""), (done.stdout, done.stderr)
        return done.stdout

    return run


def batch(work: Path, text: str, options: str = "") -> str:
    """Return a line that runs a script by sbatch and shows what it printed."""
    (work / "job.sh").write_text(f"#!/bin/bash\n{text}")
    return f"sbatch -W -Q -o out.txt {options} job.sh > /dev/null; code=$?; cat out.txt; exit $code"


def test_the_image_as_pyxis_shows_it(good: Good) -> None:
    out = good(
        'srun --container-image=$IMG sh -c \'pwd; cat /marker; echo $PATH; echo $FOO:$LANG:$LC_ALL; echo "$ONLY_HERE";'
        " touch /tmp/x && echo tmp; touch /x 2>/dev/null || echo read-only; echo $CUDA_VISIBLE_DEVICES; ls /home'"
    )
    assert out.splitlines() == [
        "/workspace", "enroot's", "/opt/app/bin:/bin", "image:C.UTF-8:", 'a b"c', "tmp", "read-only", "all",
    ]  # fmt: skip


def test_container_env(good: Good) -> None:
    out = good("srun --container-image=$IMG --container-env=FOO,LC_ALL,ONLY_HERE sh -c 'echo $FOO:$LC_ALL:$ONLY_HERE'")
    assert out == 'job:POSIX:a b"c\n'


def test_container_workdir(good: Good) -> None:
    assert good("srun --container-image=$IMG --container-workdir=/opt/app pwd") == "/opt/app\n"
    assert good("PYXIS_CONTAINER_WORKDIR=/opt srun --container-image=$IMG pwd") == "/opt\n"


def test_container_mounts(good: Good, sh: Run, work: Path) -> None:
    out = good(
        "mkdir -p 'a b'; echo in > 'a b/file'; srun --container-image=$IMG"
        ' --container-mounts="$PWD/a b:/data/in:ro,$PWD:/results,./a b:/new/place:rw+rbind"'
        " sh -c 'cat /data/in/file /new/place/file; touch /data/in/x 2>/dev/null || echo ro; touch /results/y'"
    )
    assert out == "in\nin\nro\n"
    assert (work / "y").exists()
    done = sh("srun --container-image=$IMG --container-mounts=/not/here:/x true")
    assert done.returncode == 31
    assert "--container-mounts=/not/here:/x: can't bind: source not found: /not/here" in done.stderr


def test_mounts_without_a_source(good: Good, sh: Run) -> None:
    out = good(
        "srun --container-image=$IMG --container-mounts=tmpfs:/new/scratch:size=1M+mode=0711,$PWD:/new/scratch/p,umount:/etc/hosts"
        " sh -c 'stat -f -c %T /new/scratch; stat -c %a /new/scratch; touch /new/scratch/x; ls /new/scratch;"
        " df -k /new/scratch | tail -1; grep -c /etc/hosts /proc/self/mountinfo || :'"
    )
    lines = out.split()
    assert (lines[:4], lines[-1]) == (["tmpfs", "711", "p", "x"], "0")
    assert "1024" in lines
    done = sh("srun --container-image=$IMG --container-mounts=umount:/dev/shm true")
    assert done.returncode == 31
    assert "--container-mounts=umount:/dev/shm: can't unmount /dev/shm: " in done.stderr


def test_gpus_by_their_specs(sh: Run, user: str, world_tmp: Path, cluster: Cluster, enroots: Path) -> None:
    specs = world_tmp / "pyxis-cdi"
    specs.mkdir()
    text = """cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
- {name: '0', containerEdits: {env: [GPU=0]}}
- {name: '1', containerEdits: {env: [GPU=1]}}
- {name: all, containerEdits: {env: [GPU=all]}}
containerEdits: {env: [NVIDIA_VISIBLE_DEVICES=void]}
"""
    (specs / "nvidia.yaml").write_text(text)
    line = "{} srun --container-image=$IMG --ch-cdi-dirs={} sh -c 'echo GPU=$GPU'"
    for given, gpu in (
        ("", "all"), ("NVIDIA_VISIBLE_DEVICES=1", "1"), ("NVIDIA_VISIBLE_DEVICES=all", "all"),
        ("NVIDIA_VISIBLE_DEVICES=void", ""),
    ):  # fmt: skip
        done = sh(line.format(given, specs))
        assert (done.returncode, done.stdout, done.stderr) == (0, f"GPU={gpu}\n", ""), given
    done = sh(line.format("NVIDIA_VISIBLE_DEVICES=7", specs))
    assert done.returncode == 64
    assert "NVIDIA_VISIBLE_DEVICES=7" in done.stderr
    # No specs, no driver's libraries: that is said, once per node.
    done = sh(line.format("NVIDIA_VISIBLE_DEVICES=all", "/nonexistent"))
    assert (done.returncode, done.stdout) == (0, "GPU=\n")
    assert done.stderr.count("NVIDIA_VISIBLE_DEVICES=all: no specs of nvidia.com/gpu in /nonexistent, so") == 1
    assert sh(line.format("", "/nonexistent")).stderr == ""


@pytest.mark.parametrize("option", ["--container-image=$IMG --container-unshare", "--ch-image=$IMG --ch-unshare"])
def test_unshare(good: Good, option: str) -> None:
    show = "for kind in user mnt net ipc uts; do readlink /proc/self/ns/$kind; done"
    host = good(f"srun -w n1 sh -c '{show}'").split()
    # Tasks of a node share what is their container's.
    for kinds in ((), ("net",), ("ipc", "uts"), ("net", "ipc", "uts")):
        given = f"{option}={','.join(kinds)}" if kinds else option.rpartition(" ")[0]
        one, two = (
            part.split()
            for part in good(f'srun -n2 {given} sh -c \'sleep 0; {show} | tr "\\n" " "; echo\'').splitlines()
        )
        assert one == two
        own = {name.partition(":")[0] for name, was in zip(one, host, strict=True) if name != was}
        assert own == {"user", "mnt", *kinds}
    out = good(
        f"srun -n1 {option}=net,uts sh -c 'ip -o link | wc -l; ip -o addr show up | grep -c 127.0.0.1; hostname'"
    )
    links, up, name = out.split()
    assert (links, up, name != "") == ("1", "1", True)


def test_entrypoint(good: Good, sh: Run) -> None:
    show = "sh -c 'echo $SLURM_PROCID $BY_ENTRY $FOO $PWD'"
    assert good(f"srun -n2 --container-image=$IMG {show} | sort") == "0 image /workspace\n1 image /workspace\n"
    done = sh(f"srun -n2 --container-image=$IMG --container-entrypoint {show} | sort")
    assert (done.returncode, done.stdout) == (0, "0 yes image+entry /opt\n1 yes image+entry /opt\n"), done
    assert done.stderr == ""
    # Once per node.
    done = sh(
        "PYXIS_CONTAINER_ENTRYPOINT=1 srun -N2 -n4 --container-image=$IMG --container-entrypoint-log"
        f" --container-env=FOO --container-workdir=/etc {show} | sort"
    )
    assert done.stdout == "".join(f"{n} yes job+entry /etc\n" for n in range(4)), done
    assert done.stderr.count("entrypoint") == 2
    out = good(f"PYXIS_CONTAINER_ENTRYPOINT=1 srun --no-container-entrypoint --container-image=$IMG {show}")
    assert out == "0 image /workspace\n"


def test_home_root_and_writing(good: Good) -> None:
    home = "srun --container-image=$IMG {} sh -c 'echo $HOME; ls -d $HOME/.mark 2>/dev/null || echo none'"
    good("touch ~/.mark")
    assert good(home.format("")) == "/root\nnone\n"
    assert good(home.format("--no-container-mount-home")) == "/root\nnone\n"
    own = good(home.format("--container-mount-home")).splitlines()
    assert own == [own[0], f"{own[0]}/.mark"]
    root = good(home.format("--container-mount-home --container-remap-root"))
    assert root == "/root\n/root/.mark\n"
    # As for apt: nothing of it is real, all of it succeeds.
    out = good(
        "srun --container-image=$IMG --container-remap-root --container-writable sh -c 'id -u; mkdir -p /var/lib/apt"
        " && chown 100:65534 /var/lib/apt && mknod /dev2 c 1 3 2>/dev/null; touch /etc/new; ls /etc/new; cat /proc/self/uid_map'"
    )
    assert out.split()[:2] == ["0", "/etc/new"]
    assert (
        good("rm ~/.mark; srun --container-image=$IMG --no-container-remap-root sh -c '[ $(id -u) != 0 ] && echo me'")
        == "me\n"
    )


def test_refused_before_there_is_a_job(sh: Run) -> None:
    for options, message in (
        ("--container-mounts=/a", "--container-mounts: --container-image is missing"),
        ("--container-image=$IMG --container-mounts=/a,", "an item of the list is empty"),
        ("--container-image=$IMG --ch-image=$IMG", "--container-image and --ch-image: give one of them"),
        ("--container-image=$IMG --container-writable --container-readonly", "give one of them"),
        ("--container-image=$IMG --container-mount-home --no-container-mount-home", "give one of them"),
        ("--container-image=/dev/urandom", "unknown image type: /dev/urandom"),
        ("--container-image=", "--container-image="),
        ("--container-image=$IMG --container-name=x", "--container-name=x: "),
    ):
        for command in ("srun {} echo host", "sbatch {} --wrap='echo host'", "salloc -Q {} echo granted"):
            done = sh(command.format(options))
            assert (done.returncode in {31, 64}, done.stdout) == (True, ""), (options, done)
            assert message in done.stderr


# ---- The kinds of scripts ----


def test_mlperf(good: Good, work: Path) -> None:
    """run.sub: the container's options in one array, several runs of it, a log directory mounted."""
    text = """\
#SBATCH --job-name mlperf
set -eux -o pipefail 2> /dev/null
: "${CONT:?CONT not set}"
: "${NEXP:=2}"
readonly _cont_mounts="${PWD}:/results,${PWD}/a b:/data:ro"
mkdir -p "a b" logs
for i in $(seq 1 $NEXP); do
    srun --ntasks=2 --ntasks-per-node=1 --container-image="${CONT}" --container-mounts="${_cont_mounts}" \\
        --container-workdir=/opt bash -c 'echo "run '$i' $PWD"; touch /results/logs/'$i'.$SLURM_PROCID' 2> /dev/null
done
"""
    out = good("export CONT=$IMG; " + batch(work, text, "-N2 -e /dev/null"))
    assert sorted(out.split("\n")) == ["", "run 1 /opt", "run 1 /opt", "run 2 /opt", "run 2 /opt"]
    assert sorted(path.name for path in (work / "logs").iterdir()) == ["1.0", "1.1", "2.0", "2.1"]


def test_nemo(good: Good, work: Path) -> None:
    """The launcher's scripts: mounts of the same path inside, no home, one command line over all nodes."""
    text = """\
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
srun --output out-%t.txt --container-image $IMG --container-mounts $PWD:$PWD --no-container-mount-home bash -c "
  cd $PWD; python3 -u train.py --config=x"
cat out-[0-3].txt | sed 's/:6.* in/ in/'
"""
    out = good(batch(work, text))
    expected = [f"python3 -u train.py --config=x rank={n}/4 local={n % 2} at=n1 in {work}" for n in range(4)]
    assert out.splitlines() == expected


def test_megatron_and_torchrun(good: Good, work: Path) -> None:
    text = """\
#SBATCH -N2 --ntasks-per-node=1
export MASTER_ADDR=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1) MASTER_PORT=6000
srun --container-image=$IMG --container-mounts="$PWD" --container-workdir="$PWD" \\
    sh -c 'torchrun --nnodes=$SLURM_NNODES --node_rank=$SLURM_NODEID pretrain.py' | sort
"""
    expected = [
        f"torchrun --nnodes=2 --node_rank={n} pretrain.py rank={n}/2 local=0 at=n1:6000 in {work}" for n in (0, 1)
    ]
    assert good(batch(work, text)).splitlines() == expected


def test_array(good: Good, work: Path) -> None:
    text = "#SBATCH --array=1-3 -o part-%a.txt\nsrun --container-image=$IMG sh -c 'echo $SLURM_ARRAY_TASK_ID'\n"
    (work / "array.sh").write_text(f"#!/bin/bash\n{text}")
    assert good("sbatch -W array.sh > /dev/null; cat part-?.txt") == "1\n2\n3\n"


def test_heterogeneous_job(good: Good, work: Path) -> None:
    """Each component's srun has its own container's options."""
    text = """\
#SBATCH -n1 --comment one
#SBATCH hetjob
#SBATCH -n1 --comment two
srun --het-group=0 --container-image=$IMG --container-workdir=/opt pwd
srun --het-group=1 --container-image=$IMG pwd
"""
    assert good(batch(work, text)).splitlines() == ["/opt", "/workspace"]


def test_jax(good: Good, work: Path) -> None:
    """A coordinator from the list of nodes, and one process per task."""
    text = """\
#SBATCH -N2 --ntasks-per-node=2
export COORDINATOR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n1):1234
export PYXIS_CONTAINER_MOUNTS=$PWD:/jax
srun -l --container-image=$IMG --container-env=COORDINATOR \\
    sh -c 'echo $COORDINATOR $SLURM_PROCID/$SLURM_NTASKS; touch /jax/jax.$SLURM_PROCID' | sort
"""
    assert good(batch(work, text)).splitlines() == [f"{n}: n1:1234 {n}/4" for n in range(4)]
    assert len(list(work.glob("jax.*"))) == 4


def test_variables_and_an_allocation(good: Good) -> None:
    """A site's or user's profile says which container, and scripts are plain srun lines."""
    line = "export PYXIS_CONTAINER_IMAGE=$IMG PYXIS_CONTAINER_WRITABLE=1 PYXIS_CONTAINER_MOUNTS=$PWD:/w; {}"
    assert good(line.format("srun sh -c 'touch /new; cat /marker; ls -d /w'")) == "enroot's\n/w\n"
    assert good("salloc -Q --container-image=$IMG sh -c 'srun cat /marker; srun -n1 --container-workdir=/opt pwd'") == (
        "enroot's\n/opt\n"
    )


def test_sbatch_in_a_container(good: Good, work: Path) -> None:
    """The script itself is in the container, and its steps have the same."""
    text = """\
#SBATCH --container-image={}
#SBATCH --container-mounts={}:/project
cat /marker
srun -n1 sh -c 'cat /marker; pwd; ls -d /project'
srun -n1 --container-workdir=/opt pwd
"""
    enroots = good("echo $IMG").strip()
    out = good(batch(work, text.format(enroots, work)))
    assert out.splitlines() == ["enroot's", "enroot's", "/workspace", "/project", "/opt"]


def test_interactive(good: Good) -> None:
    line = 'srun --pty --container-image=$IMG sh -c "test -t 0 && echo terminal: \\$(pwd)"'
    assert "terminal: /workspace" in good(f"script -qc '{line}' /dev/null < /dev/null")


def test_per_task_values_are_each_tasks_own(good: Good) -> None:
    out = good(
        "srun -n4 -N2 --container-image=$IMG sh -c 'echo $SLURM_PROCID $SLURM_LOCALID $RANK $LOCAL_RANK $PMI_RANK' | sort"
    )
    for line in out.splitlines():
        rank, local, torch, torch_local, *pmi = line.split()
        assert (torch, torch_local) == (rank, local)
        assert pmi in ([], [rank])
    assert len(out.splitlines()) == 4
    out = good("srun -n2 --mpi=pmi2 --container-image=$IMG sh -c 'echo $SLURM_PROCID $PMI_RANK' | sort")
    assert out == "0 0\n1 1\n"
    line = "PMIX_PTL_MODULE=tcp PMIX_GDS_MODULE=a PMIX_MCA_gds=b srun --container-image=$IMG sh -c 'echo $PMIX_MCA_ptl $PMIX_MCA_gds'"
    assert good(line) == "tcp b\n"
