# SPDX-License-Identifier: Apache-2.0
"""pyxis' scripts, unchanged: the kinds that are in public, with stubs for what they start."""

from __future__ import annotations

from pathlib import Path

from .conftest import Good, Run


def batch(work: Path, text: str, options: str = "") -> str:
    """Return a line that runs a script by sbatch and shows what it printed."""
    (work / "job.sh").write_text(f"#!/bin/bash\n{text}")
    return f"sbatch-wait -o out.txt {options} job.sh > /dev/null; code=$?; cat out.txt; exit $code"


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


def test_ngc_pytorch(good: Good, work: Path) -> None:
    """Data read-only, checkpoints to write, root by name only, and variables by --export."""
    text = """\
#SBATCH -N2 --ntasks-per-node=2 --exclusive --mem=0
mkdir -p data checkpoints
export NCCL_DEBUG=INFO
srun --mpi=none --export=ALL,NCCL_IB_HCA=mlx5 --container-image=$IMG --no-container-entrypoint --no-container-mount-home \\
    --container-mounts="$PWD/data:/data:ro,$PWD/checkpoints:/checkpoints,/dev/shm:/dev/shm,/etc/ssl:/etc/ssl:ro" \\
    --container-remap-root bash -c 'echo $NCCL_DEBUG $NCCL_IB_HCA $(id -u) $HOME $PWD; touch /data/x 2> /dev/null || touch /checkpoints/$SLURM_PROCID'
ls -l checkpoints | sed 1d | cut -d" " -f3 | uniq -c | tr -s " "
"""
    owner = good("id -un").strip()
    assert good(batch(work, text)).splitlines() == ["INFO mlx5 0 /root /workspace"] * 4 + [f" 4 {owner}"]


def test_torchrun_with_a_rendezvous(good: Good, work: Path) -> None:
    text = """\
#SBATCH -N2 --ntasks-per-node=1 --cpus-per-task=2
nodes=($(scontrol show hostnames $SLURM_JOB_NODELIST))
head=$(srun -N1 -n1 -w ${nodes[0]} sh -c 'echo $SLURMD_NODENAME')
srun --container-image $IMG --container-mounts $PWD:/w:rw,/tmp:/tmp --container-workdir /w \\
    torchrun --nnodes 2 --rdzv_backend c10d --rdzv_endpoint $head:29500 train.py | sed 's/ rank.* in/ in/'
"""
    expected = "torchrun --nnodes 2 --rdzv_backend c10d --rdzv_endpoint n1:29500 train.py in /w"
    assert good(batch(work, text)).splitlines() == [expected] * 2


def test_a_look_at_a_running_step(good: Good, work: Path) -> None:
    """Another step enters the containers of the first, on all its nodes, by the number of that step."""
    text = """\
#SBATCH -N2 --ntasks-per-node=1
mkfifo up go
exec 3<> up 4<> go
srun --container-image=$IMG --container-mounts=$PWD:/w sh -c 'touch /tmp/mine; echo > /w/up; read x < /w/go' &
read x <&3; read x <&3
srun --overlap --container-name=$SLURM_JOB_ID.0:exec sh -c 'ls /tmp/mine; cat /marker'
printf '\\n\\n' >&4
wait
rm up go
"""
    assert sorted(good(batch(work, text)).splitlines()) == sorted(["/tmp/mine", "enroot's"] * 2)


def test_array(good: Good, work: Path) -> None:
    text = "#SBATCH --array=1-3 -o part-%a.txt\nsrun --container-image=$IMG sh -c 'echo $SLURM_ARRAY_TASK_ID'\n"
    (work / "array.sh").write_text(f"#!/bin/bash\n{text}")
    assert good("sbatch-wait array.sh > /dev/null; cat part-?.txt") == "1\n2\n3\n"


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


def test_preload_then_run(good: Good, work: Path) -> None:
    """One step per node gets the container ready, the ones that count use it by its name."""
    text = """\
#SBATCH -N2 --ntasks-per-node=2
readonly _cont_name=benchmark_${SLURM_JOB_ID}
srun --ntasks="${SLURM_JOB_NUM_NODES}" --ntasks-per-node=1 --container-image=$IMG --container-name="${_cont_name}" \\
    sh -c 'echo cached > /cache'
for run in 1 2; do
    srun --ntasks=2 --ntasks-per-node=1 --container-name="${_cont_name}" --container-mounts=$PWD:/results \\
        --container-writable sh -c "echo clear >> /caches.$run"
    srun -l --ntasks=4 --container-name="${_cont_name}" --container-mounts=$PWD:/results --container-workdir=/results \\
        sh -c 'cat /cache; ls /caches.'$run'; pwd' | sort
done
"""
    out = good(batch(work, text)).splitlines()
    assert sorted(out) == sorted(
        f"{task}: {line}" for run in (1, 2) for task in range(4) for line in ("/results", f"/caches.{run}", "cached")
    )


def test_apt_as_root(good: Good, work: Path) -> None:
    """Packages that a script installs as root stay for the rest of the script; nothing needs root on the host."""
    apt = """\
#!/bin/sh -e
[ $(id -u) = 0 ] || { echo "E: are you root?"; exit 100; }
mkdir -p /var/lib/apt/lists/partial /usr/local/bin
chown 42:0 /var/lib/apt/lists/partial
[ $1 = install ] || exit 0
printf '#!/bin/sh\\necho %s of $(id -un)\\n' $3 > /usr/local/bin/$3.new
chown root:root /usr/local/bin/$3.new
chmod 4755 /usr/local/bin/$3.new
mv /usr/local/bin/$3.new /usr/local/bin/$3
"""
    (work / "apt-get").write_text(apt)
    (work / "apt-get").chmod(0o755)
    text = """\
#SBATCH -n1
srun --container-image=$IMG --container-name=dev --container-remap-root --container-writable \\
    --container-mounts=$PWD/apt-get:/bin/apt-get bash -c "apt-get update && apt-get install -y tool && /usr/local/bin/tool"
srun --container-name=dev bash -c "/usr/local/bin/tool | grep -v root"
"""
    me = good("id -un").strip()
    assert good(batch(work, text)) == f"tool of root\ntool of {me}\n"


def test_save_and_reuse(good: Good, sh: Run, work: Path) -> None:
    """An image is built on by a step, saved, and used by later jobs."""
    text = """\
#SBATCH -n1
srun --container-image=$IMG --container-writable --container-save=$PWD/derived.sqsh \\
    bash -c "echo installed > /opt/new; rm /marker" 2> /dev/null
srun --container-image=./derived.sqsh bash -c 'cat /opt/new; ls /marker 2> /dev/null; pwd; echo $FOO'
"""
    expected = "installed\n/workspace\nimage\n"
    assert good(batch(work, text)) == expected
    assert good("srun --container-image=$PWD/derived.sqsh cat /opt/new") == "installed\n"
    # Of one with a name too, also by who joins it; nothing is there after a failure.
    text = """\
#SBATCH -n1
srun --container-image=$IMG --container-name=base --container-save=named.sqsh sh -c 'echo one > /one' 2> /dev/null
srun --container-name=base --container-save=./again.sqsh sh -c 'echo two > /two; cat /one' 2> /dev/null
srun --container-name=base --container-save=never.sqsh false 2> /dev/null || echo failed
srun --container-image=./named.sqsh sh -c 'cat /one; ls /two 2> /dev/null || true'
srun --container-image=./again.sqsh cat /one /two
ls never.sqsh 2> /dev/null
true
"""
    assert good(batch(work, text)) == "one\nfailed\none\none\ntwo\n"
    done = sh("srun -N2 --container-image=$IMG --container-save=x.sqsh true")
    assert done.returncode == 64
    assert "--container-save=x.sqsh: the step has 2 nodes" in done.stderr and "slurm-ch: n" not in done.stderr
    out = good(f"srun --container-image={work}/derived.sqsh --container-save={work}/third.sqsh true 2>&1")
    assert "slurm-ch: n1: saved in " in out


def test_slurms_commands_in_a_script_in_a_container(good: Good, work: Path) -> None:
    """The script's own steps have the container's options by default, and so that of the relay."""
    text = """\
#SBATCH --ch-relay
#SBATCH --container-mounts=/etc:/host-etc
srun -n1 sh -c 'cat /marker; ls -d /host-etc'
squeue --noheader --job=$SLURM_JOB_ID --format=%T
"""
    assert good(batch(work, text, "--container-image=$IMG")) == "enroot's\n/host-etc\nRUNNING\n"
