# SPDX-License-Identifier: Apache-2.0
"""Images: a small one to start in, and one with a Python and 7,000 files to read."""

from __future__ import annotations

import random
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.small_images import make_image, squash

FILES = 7000
_APPLETS = ("sh", "true", "sleep", "cat", "find", "xargs")

# Modules of the standard library that a program of some size ends up with.
IMPORTS = (
    "argparse asyncio base64 bz2 calendar cgi code codecs collections colorsys concurrent.futures configparser "
    "contextlib copy csv ctypes curses dataclasses datetime decimal difflib dis doctest email email.mime.text "
    "encodings.idna fileinput filecmp fractions ftplib functools getopt getpass gettext glob graphlib gzip hashlib "
    "heapq hmac html html.parser http.client http.cookies http.server imaplib importlib.metadata inspect ipaddress "
    "json logging.config logging.handlers lzma mailbox mimetypes modulefinder multiprocessing netrc nntplib "
    "optparse pathlib pdb pickle pickletools pkgutil platform plistlib poplib pprint profile pstats pydoc queue "
    "quopri random readline re rlcompleter runpy sched secrets selectors shelve shlex shutil signal smtplib "
    "socketserver sqlite3 ssl statistics string stringprep subprocess symtable sysconfig tabnanny tarfile telnetlib "
    "tempfile textwrap timeit tokenize trace traceback tracemalloc typing unittest.mock urllib.request uuid venv "
    "warnings wave weakref webbrowser wsgiref.simple_server xml.dom.minidom xml.etree.ElementTree xml.sax "
    "xmlrpc.client xmlrpc.server zipapp zipfile zipimport zoneinfo"
)


@dataclass(frozen=True)
class Images:
    """Paths of the images, each as a directory and as SquashFS."""

    small: Path
    small_sqfs: Path
    big: Path
    big_sqfs: Path


def make(directory: Path) -> Images:
    """Make all images in `directory`."""
    small = make_image(directory / "small", applets=_APPLETS)
    big = make_image(directory / "big", applets=_APPLETS)
    _add_python(big)
    _add_files(big / "data")
    return Images(small, squash(small, small.with_suffix(".sqfs")), big, squash(big, big.with_suffix(".sqfs")))


def _add_python(root: Path) -> None:
    """Copy the machine's own Python with its libraries and compiled modules."""
    python = Path("/usr/bin/python3").resolve()
    library = Path(f"/usr/lib/{python.name}")
    shutil.copy(python, root / "usr/bin/python3")
    skip = shutil.ignore_patterns("test", "idlelib", "lib2to3", "EXTERNALLY-MANAGED", "sitecustomize.py")
    shutil.copytree(library, root / "usr/lib" / library.name, ignore=skip, symlinks=False)
    needed = [python, *(root / "usr/lib" / library.name / "lib-dynload").glob("*.so")]
    said = subprocess.run(["ldd", *needed], check=True, capture_output=True, text=True).stdout
    for word in {word for word in said.split() if word.startswith("/") and not word.endswith(":")}:
        place = root / word.lstrip("/")
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(word).resolve(), place)
    subprocess.run([python, "-m", "compileall", "-q", root / "usr/lib" / library.name], check=False)
    lines = "".join(f"try:\n    import {name}\nexcept ImportError:\n    pass\n" for name in IMPORTS.split())
    shutil.copy(Path(__file__).with_name("reader.py"), root)
    (root / "imports.py").write_text("import warnings\nwarnings.simplefilter('ignore')\n" + lines)


def _add_files(root: Path) -> None:
    """Write 7,000 files as a package tree has them: mostly small, text-like, the same every time."""
    dice = random.Random(7000)
    words = [bytes(dice.choices(b"abcdefghijklmnopqrstuvwxyz", k=dice.randint(2, 9))) for _ in range(2000)]
    for number in range(FILES):
        where = root / f"p{number // 350:02}" / f"m{number // 35 % 10}"
        where.mkdir(parents=True, exist_ok=True)
        size = int(min(200_000, dice.lognormvariate(8, 1.2)))
        text = b" ".join(dice.choices(words, k=size // 6 + 1))
        (where / f"f{number:04}").write_bytes(text[:size])
