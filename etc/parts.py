# SPDX-License-Identifier: Apache-2.0
"""Write what a build is made of: `parts.py DIRECTORY` makes DIRECTORY/parts.json.

The version, the commit (of git, or COMMIT from the environment, where there is
no git) and a checksum of each program, so that a mixed installation shows.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)


from slurm_ch import __version__  # noqa: E402


def commit() -> str:
    """Return the commit's short name, with a + where the checkout differs from it; empty where nobody knows."""
    if os.environ.get("COMMIT"):
        return os.environ["COMMIT"]
    git = ["git", "-c", f"safe.directory={ROOT}", "-C", ROOT]
    if not os.path.exists(os.path.join(ROOT, ".git")):
        return ""
    try:
        name = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], check=True, capture_output=True, text=True)
        same = subprocess.run([*git, "diff", "--quiet", "HEAD"], check=False, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return name.stdout.strip() + ("+" if same.returncode else "")


def main(directory: str) -> None:
    """Write the list of what is in `directory`."""
    parts = {}
    for name in sorted(os.listdir(directory)):
        if name[0] != "." and name != "parts.json":
            with open(os.path.join(directory, name), "rb") as file:
                parts[name] = hashlib.sha256(file.read()).hexdigest()
    to = os.path.join(directory, "parts.json")
    with open(to + ".new", "w") as file:
        json.dump({"version": __version__, "commit": commit(), "parts": parts}, file, indent=1)
        file.write("\n")
    os.replace(to + ".new", to)


if __name__ == "__main__":
    main(sys.argv[1])
