# SPDX-License-Identifier: Apache-2.0
"""pyxis' options, each against what pyxis documents."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from slurm_ch import paths
from slurm_ch.sandbox.cluster import Cluster
from tests.small_images import make_image, squash

from .conftest import WAITING, Good, Run


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
    # What came with a directory of the host's stays, but nothing of it is seen.
    out = good(
        "touch /dev/shm/pyxis-$$; srun --container-image=$IMG --container-mounts=umount:/dev/shm"
        " sh -c 'ls /dev/shm; ls /dev/null; touch /dev/shm/x 2> /dev/null || echo ro'; rm /dev/shm/pyxis-$$"
    )
    assert out == "/dev/null\nro\n"
    done = sh("srun --container-image=$IMG --container-mounts=umount:/etc true")
    assert done.returncode == 31
    assert "--container-mounts=umount:/etc: can't unmount /etc: nothing is mounted there" in done.stderr


def test_name_and_time_of_the_host(good: Good, world_tmp: Path, enroots: Path) -> None:
    """Over the image's own, be it a link: the file that it leads to stays as it is."""
    root = make_image(world_tmp / "zones", "zones")
    (root / "usr/share/zoneinfo").mkdir(parents=True)
    (root / "usr/share/zoneinfo/UTC").write_text("the image's\n")
    (root / "etc/localtime").symlink_to("/usr/share/zoneinfo/UTC")
    (root / "etc/hostname").write_text("builder\n")
    squash(root, world_tmp / "zones.sqfs")
    show = "cat /etc/hostname; md5sum < /etc/localtime; cat /usr/share/zoneinfo/UTC; readlink /etc/localtime"
    host = [line for path in ("/etc/hostname",) for line in Path(path).read_text().splitlines()]
    zone = subprocess.run("md5sum < /etc/localtime", shell=True, check=True, capture_output=True, text=True).stdout
    for option in ("", "--container-writable", "--container-name=z"):
        out = good(f"srun --container-image={world_tmp}/zones.sqfs {option} sh -c '{show} || echo no link'")
        assert out.splitlines() == [*host, zone.strip(), "the image's", "no link"]


def test_the_jobs_directory_where_a_site_wants_it(user: str, enroots: Path, work: Path) -> None:
    """container_directory=job: if the container shows it, and nobody asks for another."""
    with Cluster(nodes=1, plugstack_lines=[f"required {paths.PLUGIN} pyxis=yes container_directory=job"]) as other:

        def good(line: str) -> str:
            env = {**other.environ(user), "IMG": str(enroots), "PATH": "/usr/bin:/bin"}
            done = other.run(["bash", "-c", f"cd {work}; {line}"], user=user, timeout=60, env=env)
            assert (done.returncode, WAITING.sub("", done.stderr)) == (0, "")
            return str(done.stdout)

        assert good("srun --container-image=$IMG --container-mounts=$PWD pwd") == f"{work}\n"
        assert good("srun --container-image=$IMG --container-mounts=$PWD:/w pwd") == "/w\n"
        assert good("srun --container-image=$IMG pwd") == "/workspace\n"
        assert good("srun --container-image=$IMG --container-mounts=$PWD --container-workdir=/opt pwd") == "/opt\n"


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
    # No specs, no driver's libraries: that is reported, once per node.
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
        assert one == two and len(one) == len(host)
        own = {name.partition(":")[0] for name, was in zip(one, host) if name != was}
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
        ("--container-image=$IMG --container-save=/x/", "--container-save=/x/: "),
    ):
        for command in ("srun {} echo host", "sbatch {} --wrap='echo host'", "salloc -Q {} echo granted"):
            done = sh(command.format(options))
            assert (done.returncode in {31, 64}, done.stdout) == (True, ""), (options, done)
            assert message in done.stderr
