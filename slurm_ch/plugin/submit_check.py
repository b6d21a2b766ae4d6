# SPDX-License-Identifier: Apache-2.0
"""A request is checked before it waits in the queue, and refused if the node would refuse it.

Run by the plugin in srun, sbatch and salloc, as the submitting user. Only what
is the same on every node counts; an image that isn't here may be there. What a
reference means is found out here, and what srun wants is pulled here.
"""

from __future__ import annotations

import os
import sys

from .. import agreement, log
from ..engine import container, image
from ..engine.caller import Caller
from ..errors import ChError, UsageError, describe, exit_code
from .facts import asked_for, read_facts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .facts import Facts

# What of a script is searched for #SBATCH lines.
_SCRIPT_BYTES = 1 << 16

# What files that are images are called.
_ENDINGS = (".sqsh", ".sqfs", ".squashfs", ".simg", ".sif")


def check(facts: Facts, command: Sequence[str]) -> str | None:
    """Raise ChError if no node can do what is asked for; `command` is what was called.

    The error is the one that a node would raise. Where the image is a reference,
    what it means is returned, as the plugin is told.
    """
    here, wanted = asked_for(facts)
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
        return None  # what a container with a name is made of, its node knows
    if wanted.image.startswith(agreement.REFERENCE_BEGINNINGS):
        from . import references

        _tell_of_file(wanted.label("image"), wanted.image)
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
            return None  # not here, or not to be read here
        raise
    container.check_image(wanted, found, storage)
    if wanted.broadcast is not None:
        from . import broadcast

        broadcast.refuse_all_but_files(wanted, found.kind)
    return None


def _tell_of_file(label: str, reference: str) -> None:
    """Say so where what is looked for in a registry is called like a file here: pyxis wants a slash in a path."""
    name = reference.rpartition("/")[2]
    if reference == f"docker://{name}" and name.endswith(_ENDINGS) and os.path.isfile(name):
        log.warning(f"{label}={name}: looked for in a registry; for the file of that name here, say {label}=./{name}")


def _check_save(what: str, command: Sequence[str], env: Mapping[str, str]) -> None:
    """Raise UsageError if it can't be one container that is saved, as far as the command line shows it."""
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
    """Raise ChError for what can be no image wherever the step starts."""
    if "://" in image and not image.startswith("/"):
        from ..engine import not_an_image

        if said := not_an_image.pulled(image):
            raise ChError(said)


def _refuse_two_images(command: Sequence[str]) -> None:
    """Raise UsageError if a script asks for another image in another of its components."""
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
    """Return whether the step may start in another directory than this one."""
    if "SLURM_WORKING_DIR" in env or any(_is_chdir(word) for word in command[1:]):
        return True
    if os.path.basename(command[0]) != "sbatch" or any(word.startswith("--wrap") for word in command):
        return False
    scripts = [_directives(word) for word in command[1:] if os.path.isfile(word)]
    return not scripts or any(_is_chdir(word) for words in scripts for word in words)


def _is_chdir(word: str) -> bool:
    return word.startswith("--chd") or (word[:1] == "-" != word[1:2] and "D" in word)


def _directives(path: str) -> list[str]:
    """Return the words of a script's #SBATCH lines; as good as --chdir if it can't be read."""
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
        return ["sbatch"]  # of which nothing is known


def main(argv: Sequence[str]) -> int:
    """Check the facts in the descriptor that `argv` names; print the verdict if there is one."""
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
    """Run the checker as a program; leaves without the interpreter's clean-up."""
    os._exit(main(sys.argv[2:]))
