# SPDX-License-Identifier: Apache-2.0
"""Measure pulls from a registry on loopback to a SquashFS file: ours, umoci, ch-image and apptainer, in one run.

The other programs come from Debian sid, unpacked into a tree that bubblewrap makes
their root. All of them work on a file system made for that, as an ordinary user.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pwd
import random
import re
import shlex
import socket
import statistics
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from slurm_ch.images import layout, merge
from slurm_ch.images.flat import Flat

from . import peer

ROOT = Path(__file__).resolve().parent.parent
FILES = 100_000
# How many cached starts are measured.
AGAIN = 11
OURS = "slurm-ch pull"
# The time if reading and merging the layers cost nothing: a lower limit for any packing with zstd 3.
FLOOR = "skopeo copy, and tar2sqfs zstd 3 of a finished tar"
PACKAGES = (
    "charliecloud-builders",
    "charliecloud-runtime",
    "apptainer",
    "squashfs-tools",
    "python3-minimal",
    "ca-certificates",
)
_ZSTD = "-comp zstd -Xcompression-level 3 -quiet -no-progress -noappend -exit-on-error"
# The peak memory of a process includes that before its exec, so a small process starts the command.
_HELPER = """
import os, sys
pid = os.fork()
if not pid:
    os.execv("/bin/sh", ["sh", "-c", sys.argv[1]])
_, status, used = os.wait4(pid, 0)
print(used.ru_utime + used.ru_stime, used.ru_maxrss)
sys.exit(status != 0)
"""
_NEEDED = re.compile(r"^(?:tzdata|debconf|media-types)_")


class Image:
    """An OCI layout of four layers: packages of text and of what can't be compressed."""

    def __init__(self, path: Path, files: int) -> None:
        self.path = path
        self._blobs = path / "blobs/sha256"
        self._blobs.mkdir(parents=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        dice = random.Random(100_000)
        words = [bytes(dice.choices(b"abcdefghijklmnopqrstuvwxyz_(){};=", k=dice.randint(2, 11))) for _ in range(6000)]
        text = b" ".join(dice.choices(words, k=4_000_000))
        noise = dice.randbytes(16 << 20)
        layers, ids = [], []
        for number in range(4):
            layer, inner = self._layer(number, files // 4, dice, text, noise)
            layers.append(layer)
            ids.append(inner)
        config = {
            "architecture": "amd64", "os": "linux", "config": {"Env": ["PATH=/usr/bin:/bin"], "Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": ids}, "history": [{"created_by": "a script"}] * 4,
        }  # fmt: skip
        manifest = {
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                       **self._blob(json.dumps(config).encode())},
            "layers": layers,
        }  # fmt: skip
        described = {"mediaType": manifest["mediaType"], **self._blob(json.dumps(manifest).encode())}
        described["annotations"] = {"org.opencontainers.image.ref.name": "image"}
        (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [described]}))
        self.size = sum(layer["size"] for layer in layers)

    def _blob(self, data: bytes) -> dict[str, Any]:
        name = hashlib.sha256(data).hexdigest()
        (self._blobs / name).write_bytes(data)
        return {"digest": f"sha256:{name}", "size": len(data)}

    def _layer(
        self, number: int, files: int, dice: random.Random, text: bytes, noise: bytes
    ) -> tuple[dict[str, Any], str]:
        out = io.BytesIO()
        inner = hashlib.sha256()
        with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=6, mtime=0) as packed:

            class Tee:
                def write(self, data: bytes) -> int:
                    inner.update(data)
                    return packed.write(data)

            with tarfile.open(fileobj=Tee(), mode="w|", format=tarfile.PAX_FORMAT) as archive:  # type: ignore[arg-type]
                made: set[str] = set()
                for one in range(files):
                    directory = f"usr/lib/p{number}/{one // 400:03}/{one // 20 % 20:02}"
                    for count in range(1, directory.count("/") + 2):
                        head = "/".join(directory.split("/")[:count])
                        if head not in made:
                            made.add(head)
                            info = tarfile.TarInfo(head)
                            info.type, info.mode, info.mtime = tarfile.DIRTYPE, 0o755, 1_700_000_000
                            archive.addfile(info)
                    size = int(min(2_000_000, dice.lognormvariate(8.1, 1.6)))
                    pool = noise if one % 16 == 0 else text
                    start = dice.randrange(len(pool) - 2_000_000)
                    info = tarfile.TarInfo(f"{directory}/module_{one}.py")
                    info.size, info.mode, info.mtime = size, 0o644, 1_700_000_000
                    archive.addfile(info, io.BytesIO(pool[start : start + size]))
                for one in range(0, files // 100 if number else 0):
                    before = one * 40
                    archive.addfile(
                        tarfile.TarInfo(
                            f"usr/lib/p{number - 1}/{before // 400:03}/{before // 20 % 20:02}/.wh.module_{before}.py"
                        )
                    )
        media = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip"}
        return {**media, **self._blob(out.getvalue())}, f"sha256:{inner.hexdigest()}"


@contextmanager
def registry(work: Path, image: Image) -> Iterator[str]:
    """Run docker-registry with TLS, with the image in it; give HOST:PORT/NAME:TAG. work/ca.crt vouches for it."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{found.getsockname()[1]}"
    key = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    subprocess.run(
        [*key, "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", work / "key.pem",
         "-out", work / "ca.crt"], check=True, capture_output=True,
    )  # fmt: skip
    (work / "ca.crt").chmod(0o644)
    (work / "config.yml").write_text(json.dumps({
        "version": "0.1", "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(work / "registry")}},
        "http": {"addr": host, "secret": "x",
                 "tls": {"certificate": str(work / "ca.crt"), "key": str(work / "key.pem")}},
    }))  # fmt: skip
    with (work / "registry.log").open("wb") as log:
        server = subprocess.Popen(["docker-registry", "serve", work / "config.yml"], stdout=log, stderr=log)
    try:
        name = f"{host}/bench:1"
        push = ["skopeo", "--insecure-policy", "copy", "-q", "--dest-tls-verify=false", f"oci:{image.path}:image"]
        for _ in range(100):
            if subprocess.run([*push, f"docker://{name}"], check=False, capture_output=True).returncode == 0:
                break
            time.sleep(0.1)
        else:
            raise SystemExit((work / "registry.log").read_text())
        yield name
    finally:
        server.kill()
        server.wait()


@contextmanager
def disk(work: Path) -> Iterator[Path]:
    """Make a file system of its own, so that what is written to it can be counted."""
    place = work / "disk"
    place.mkdir()
    with (work / "disk.img").open("wb") as file:
        file.truncate(16 << 30)
    subprocess.run(["mkfs.ext4", "-q", "-N", "1000000", work / "disk.img"], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", work / "disk.img", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def tree(work: Path, names: Sequence[str] = PACKAGES) -> Path:
    """Unpack the other programs from Debian sid, with their dependencies, into a tree that can be a root."""
    to = work / "peers"
    packages = peer.packages("sid", (*names, "bash", "coreutils"), work / "peers-apt")
    to.mkdir()
    for name in ("bin", "sbin", "lib", "lib64"):
        (to / "usr" / name).mkdir(parents=True, exist_ok=True)
        (to / name).symlink_to(f"usr/{name}")
    for package in packages:
        if not _NEEDED.search(package.name):
            archive = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], check=True, capture_output=True).stdout
            subprocess.run(["tar", "-xC", to, "--keep-directory-symlink", "-f", "-"], input=archive, check=True)
    for link, target in (("usr/bin/sh", "bash"), ("pull", "")):
        if target and not (to / link).exists():
            (to / link).symlink_to(target)
        elif not target:
            (to / link).mkdir()
    (to / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n" + "chuser:x:1001:1001::/pull:/bin/sh\n")
    (to / "etc/group").write_text("root:x:0:\nchuser:x:1001:\n")
    for empty in ("resolv.conf", "hosts", "localtime"):
        (to / "etc" / empty).touch()
    (to / "tmp").mkdir(exist_ok=True)
    (to / "tmp").chmod(0o1777)
    return to


def inside(peers: Path, place: Path, command: str) -> str:
    """Return a shell command that runs `command` in the tree of the other programs, in the directory of `measure`."""
    bound = f"--bind {peers} / --dev-bind /dev /dev --proc /proc --tmpfs /tmp --bind {place} /pull"
    return (
        f"bwrap {bound} "
        "--chdir /pull/run --setenv HOME /pull/run/home --setenv TMPDIR /pull/run/tmp "
        "--setenv SSL_CERT_FILE /pull/ca.crt "
        f"--setenv PATH /usr/bin:/bin sh -c {shlex.quote(command)}"
    )


def flat_tar(image: Path, to: Path) -> None:
    """Write the tar archive that our merge sends to the packer."""
    blobs = str(image / "blobs/sha256")
    index = json.loads((image / "index.json").read_text())
    described = json.loads(Path(layout.blob_path(blobs, index["manifests"][0]["digest"])).read_text())
    tree = merge.Tree()
    for layer in described["layers"]:
        tree.add(merge.Layer(layout.blob_path(blobs, layer["digest"]), "a layer"))
    with to.open("wb") as file:
        Flat(tree).write(file.fileno())


def variants(name: str, peers: Path, place: Path) -> dict[str, str]:
    """Return a shell command for each program, which creates `out` in the current directory."""
    ours = f"{ROOT}/.venv/bin/python -c 'import sys; {{}}from slurm_ch.cli.main import main; main()' pull -q docker://{name}"
    ours += " && mv home/.cache/slurm_ch/images/*.sqfs out"
    packer = "tar2sqfs --quiet --force --no-skip --compressor zstd --comp-extra level=3 --num-jobs 4"
    return {
        OURS: ours.format(""),
        f"{OURS}, without python3-isal": ours.format('sys.modules["isal"] = None; '),
        FLOOR: f"skopeo copy -q docker://{name} oci:oci:image && {packer} out < {place}/flat.tar",
        "umoci, mksquashfs zstd 3": f"skopeo copy -q docker://{name} oci:oci:image && "
        f"umoci unpack --rootless --image oci:image bundle && mksquashfs bundle/rootfs out -all-root {_ZSTD}",
        "ch-image, mksquashfs zstd 3": inside(
            peers,
            place,
            f"ch-image --tls-no-verify --storage=/pull/run/storage pull {name} x && "
            f"mksquashfs storage/img/x out {_ZSTD}",
        ),
        "apptainer pull (gzip)": inside(peers, place, f"apptainer pull --disable-cache out docker://{name}"),
    }


def again(name: str, peers: Path, place: Path) -> dict[str, tuple[str, str]]:
    """Return for each program with a cache the command of a first pull and that of a second, which finds the image."""
    slurm_ch = f"{ROOT}/.venv/bin/slurm-ch pull -q"
    chimage = "ch-image --tls-no-verify --storage=/pull/run/storage pull"
    return {
        OURS: (f"{slurm_ch} docker://{name}", f"{slurm_ch} docker://{name}"),
        f"{OURS} --pull=cached": (f"{slurm_ch} docker://{name}", f"{slurm_ch} --pull=cached docker://{name}"),
        "ch-image": (inside(peers, place, f"{chimage} {name} x"), inside(peers, place, f"{chimage} {name} x")),
        "apptainer": (
            inside(peers, place, f"apptainer pull --force out docker://{name}"),
            inside(peers, place, f"apptainer pull --force out docker://{name}"),
        ),
    }


def measure(command: str, place: Path, env: dict[str, str], entry: pwd.struct_passwd) -> dict[str, float | str]:
    """Run a command in a fresh directory, and return what it cost."""
    run = place / "run"
    subprocess.run(["rm", "-rf", run], check=True)
    for path in (run, run / "home", run / "tmp"):
        path.mkdir()
        os.chown(path, entry.pw_uid, entry.pw_gid)
    subprocess.run(["sync", "-f", place], check=True)
    before = os.statvfs(place)
    peak, stop = [0], threading.Event()

    def count() -> None:
        while not stop.wait(0.02):
            now = os.statvfs(place)
            peak[0] = max(peak[0], before.f_ffree - now.f_ffree)

    counter = threading.Thread(target=count)
    counter.start()
    written = _written(place)
    begin = time.perf_counter()
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-S", "-c", _HELPER, command], check=False, cwd=run, env=env, user=entry.pw_uid,
        group=entry.pw_gid, extra_groups=[], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    wall = time.perf_counter() - begin
    stop.set()
    counter.join()
    subprocess.run(["sync", "-f", place], check=True)
    said, _, last = done.stdout.rstrip().rpartition("\n")
    if done.returncode or not (run / "out").exists():
        return {"error": (said + last)[-500:]}
    cpu, largest = last.split()
    return {
        "wall": wall,
        "cpu": float(cpu),
        "rss": int(largest) * 1024,
        "files": peak[0],
        "written": _written(place) - written,
        "size": (run / "out").stat().st_size,
    }


def _written(place: Path) -> int:
    """Return the bytes written to the file system's device."""
    device = os.stat(place).st_dev
    fields = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat").read_text().split()
    return int(fields[6]) * 512


def cached_start(first: str, then: str, place: Path, env: dict[str, str], entry: pwd.struct_passwd) -> dict[str, Any]:
    """Return the milliseconds, in wall time and CPU time, of a pull that finds the image in the cache."""
    found = measure(f"{first} && touch out", place, env, entry)
    if "error" in found:
        return found
    samples = []
    for number in range(AGAIN + 1):
        begin = time.perf_counter()
        helper = ["/usr/bin/python3", "-I", "-S", "-c", _HELPER, f"{then} > /dev/null 2>&1"]
        done = subprocess.run(
            helper, check=True, cwd=place / "run", env=env, user=entry.pw_uid, group=entry.pw_gid, extra_groups=[],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        if number:
            samples.append((time.perf_counter() - begin, float(done.stdout.split()[0])))
    wall, cpu = (statistics.median(column) * 1000 for column in zip(*samples))
    return {"wall": wall, "cpu": cpu}


def suite(user: str, rounds: int, files: int = FILES) -> dict[str, Any]:
    """Return everything measured."""
    entry = pwd.getpwnam(user)
    samples: dict[str, list[dict[str, Any]]] = {}
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-ch-bench-pull-")))
        work.chmod(0o755)
        begin = time.monotonic()
        image = Image(work / "image", files)
        peers = tree(work)
        place = stack.enter_context(disk(work))
        name = stack.enter_context(registry(work, image))
        (place / "ca.crt").write_bytes((work / "ca.crt").read_bytes())
        print(f"pull: prepared in {time.monotonic() - begin:.0f} s: {image.size / 1e6:.0f} MB of layers", flush=True)
        env = {"PATH": os.environ["PATH"], "HOME": f"{place}/run/home", "SSL_CERT_FILE": f"{place}/ca.crt"}
        flat_tar(image.path, place / "flat.tar")
        commands = variants(name, peers, place)
        dice = random.Random(1)
        for number in range(rounds):
            for what in dice.sample(sorted(commands), len(commands)):
                found = measure(commands[what], place, env, entry)
                samples.setdefault(what, []).append(found)
                print(f"pull: round {number}, {what}: {found}", flush=True)
        cached = {}
        for what, (first, then) in again(name, peers, place).items():
            cached[what] = cached_start(first, then, place, env, entry)
            print(f"pull: again, {what}: {cached[what]}", flush=True)
    return {"layers": image.size, "files": files, "samples": samples, "cached": cached}


def table(found: dict[str, Any]) -> str:
    """Return what was measured, as a table of medians."""
    lines = [
        f"An image of {found['files']:,} files, {found['layers'] / 1e6:.0f} MB of layers, from a registry on loopback.",
        "",
        "| | CPU s | of ours | wall s | memory of the largest, MB | files made | written, MB | result, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    middle = {
        what: {key: statistics.median(one[key] for one in runs if key in one) for key in runs[0]}
        for what, runs in found["samples"].items()
        if "error" not in runs[0]
    }
    for what in sorted(middle, key=lambda one: middle[one]["cpu"]):
        one = middle[what]
        share = middle[OURS]["cpu"] / one["cpu"] if OURS in middle else 0
        lines.append(
            f"| {what} | {one['cpu']:.1f} | {share:.2f} | {one['wall']:.0f} | {one['rss'] / 1e6:.0f} "
            f"| {one['files']:,.0f} "
            f"| {one['written'] / 1e6:,.0f} | {one['size'] / 1e6:.0f} |"
        )
    for what, runs in found["samples"].items():
        lines += [f"\n{what}: failed: {one['error']}" for one in runs if "error" in one]
    lines += [
        "",
        "A cached start: the same command once more, when nothing is left to be pulled (medians).",
        "",
        "| | wall ms | CPU ms |",
        "|---|---|---|",
    ]
    for what, one in found["cached"].items():
        lines.append(
            f"| {what} | failed: {one['error']} | |"
            if "error" in one
            else f"| {what} | {one['wall']:.0f} | {one['cpu']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def write(results: Path, found: dict[str, Any]) -> None:
    """Write pull.md and pull.json, and show the table."""
    text = table(found)
    (results / "pull.md").write_text("# Images from a registry\n\n" + text)
    (results / "pull.json").write_text(json.dumps(found, indent=0) + "\n")
    print(text)
