# SPDX-License-Identifier: Apache-2.0
"""Check a request at submission, and refuse it if every node would refuse it.

The plugin runs this program in srun, sbatch and salloc, as the submitting user. It
checks only what is the same on every node: an image that is missing here may exist
there. It also resolves references, and pulls the image for srun.
"""

from __future__ import annotations

import os
import sys

from .. import agreement, log
from ..engine import container, image
from ..engine.caller import Caller
from ..errors import ChError, UsageError, describe, exit_code
from .facts import read_facts, site_and_request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .facts import Facts

# This many bytes of a script are searched for #SBATCH lines.
_SCRIPT_BYTES = 1 << 16


def check(facts: Facts, command: Sequence[str]) -> str | None:
    """Raise ChError if no node can carry out the request. The error is the one that a node would raise.

    `command` is the command line of srun, sbatch or salloc. Return the answer for the plugin if the image is a
    reference or was broadcast, else None.
    """
    here, wanted = site_and_request(facts)
    if facts.broadcast is not None:
        from . import broadcast

        return broadcast.to_nodes(facts, wanted, here)
    _refuse_two_images(command)
    if wanted.save is not None:
        _check_save(f"{wanted.label('save')}={wanted.save}", command, facts.environment)
    if wanted.devices:
        from ..devices import library

        library.check_files(wanted.devices)
    if not wanted.image:
        return None  # the node knows the image of a named container
    if wanted.image.startswith(agreement.REFERENCE_BEGINNINGS):
        from . import references

        _warn_of_file(wanted.label("image"), wanted.image)
        return references.at_submission(os.path.basename(command[0]), wanted, here, Caller(facts.environment))
    _refuse_scheme(wanted.image)
    relative = not wanted.image.startswith("/") and wanted.image_directory is None
    if relative and _starts_elsewhere(command, facts.environment):
        return None
    caller = Caller(facts.environment)
    storage = image.storage_directory(wanted.storage, facts.environment, caller.user)
    try:
        found = image.resolve(wanted.image, storage, wanted.image_directory or caller.cwd)
    except ChError as error:
        if isinstance(error.__cause__, OSError):
            return None  # missing on this host, or not readable here
        raise
    container.check_image(wanted, found, storage)
    if wanted.broadcast is not None:
        from . import broadcast

        broadcast.refuse_all_but_files(wanted, found.kind)
    return None


def _warn_of_file(label: str, reference: str) -> None:
    """Warn if a file here has the name that is looked up in a registry: pyxis' paths need a slash."""
    from ..engine import not_an_image

    name = reference.rpartition("/")[2]
    if reference == f"docker://{name}" and name.endswith(not_an_image.ENDINGS) and os.path.isfile(name):
        log.warning(f"{label}={name}: looked for in a registry; for the file of that name here, say {label}=./{name}")


def _check_save(what: str, command: Sequence[str], env: Mapping[str, str]) -> None:
    """Raise UsageError if the command line shows that more than one container, or none, would be saved."""
    from . import save, slurm_words

    program, words = os.path.basename(command[0]), command[1:]
    if program == "salloc":
        raise UsageError(f"{what}: salloc runs nothing in a container: give it to srun")
    if program == "srun" and ":" in words:
        raise UsageError(f"{what}: an srun of several components is not saved: use an srun for each")
    if program == "srun":
        save.refuse_nodes(what, slurm_words.nodes_of_step(words, env) or 1)
    elif slurm_words.is_array(words, [one for word in words if os.path.isfile(word) for one in _directives(word)], env):
        save.refuse_array(what)


def _refuse_scheme(image: str) -> None:
    """Raise ChError for an image with a scheme that isn't known, whatever directory the step starts in."""
    if "://" in image and not image.startswith("/"):
        from ..engine import not_an_image

        if message := not_an_image.pulled(image):
            raise ChError(message)


def _refuse_two_images(command: Sequence[str]) -> None:
    """Raise UsageError if the components of a script ask for different images."""
    for word in command[1:]:
        words = _directives(word) if os.path.basename(command[0]) == "sbatch" and os.path.isfile(word) else []
        if "hetjob" not in words and "packjob" not in words:
            continue
        images = [
            one.partition("=")[2] or after
            for one, after in zip(words, [*words[1:], ""])
            if one.partition("=")[0] == "--ch-image"
        ]
        if len(set(images)) > 1:
            raise UsageError(f"--ch-image={images[-1]}: all components of one command have the same image")


def _starts_elsewhere(command: Sequence[str], env: Mapping[str, str]) -> bool:
    """Whether the step may start in another directory than this process's."""
    if "SLURM_WORKING_DIR" in env or any(_is_chdir(word) for word in command[1:]):
        return True
    if os.path.basename(command[0]) != "sbatch" or any(word.startswith("--wrap") for word in command):
        return False
    scripts = [_directives(word) for word in command[1:] if os.path.isfile(word)]
    return not scripts or any(_is_chdir(word) for words in scripts for word in words)


def _is_chdir(word: str) -> bool:
    return word.startswith("--chd") or (word[:1] == "-" != word[1:2] and "D" in word)


def _directives(path: str) -> list[str]:
    """Return the words of a script's #SBATCH lines; ["--chdir"] if it can't be read, as it may have that."""
    try:
        with open(path, "rb") as file:
            text = os.fsdecode(file.read(_SCRIPT_BYTES))
    except OSError:
        return ["--chdir"]
    lines = [line[len("#SBATCH") :].partition(" #")[0] for line in text.split("\n") if line.startswith("#SBATCH")]
    return [word for line in lines for word in line.split()]


def _command_line(pid: int) -> list[str]:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return os.fsdecode(file.read()).rstrip("\0").split("\0")
    except OSError:
        return ["sbatch"]  # of which the least is known for certain


def main(argv: Sequence[str]) -> int:
    """Check the facts in the descriptor that `argv` names; print the answer or the error, if there is one."""
    facts = read_facts(int(argv[0]))
    try:
        called, *words = _command_line(os.getppid())
        found = check(facts, [facts.command or called, *words])
        if found is not None:
            os.write(1, os.fsencode(found))
    except ChError as error:
        os.write(1, os.fsencode(f"{exit_code(error)} {log.line('error', describe(error))}"))
        return exit_code(error)
    return 0


def run() -> None:
    """Run the checker as a program; exits without the interpreter's clean-up."""
    os._exit(main(sys.argv[2:]))
