# SPDX-License-Identifier: Apache-2.0
"""Read srun's and sbatch's own options from the command line, because Slurm tells a plugin none of them.

Reading ends at the command, and at the first option that isn't known here: a wrong guess would be worse
than none. Loaded only if an option of ours depends on them.
"""

from __future__ import annotations

import re

from ..request import options, pyxis

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

# Short options: with a value, with an optional value that has to be attached, and without a value.
_VALUED = {"srun": "ABbCcDdeFGiJLMmNnopqrSTtWwx", "sbatch": "aABbCcDdeFGiJLMmNnopqStwx"}
_ATTACHED = "IKk"
_PLAIN = {"srun": "EHhlOQsuVvXZ", "sbatch": "HhkOQsVvW"}
# Long options without a value, or with an optional one.
_NO_VALUE_WORDS = """
    bcast compress contiguous disable-status exact exclusive get-user-env hold ignore-pbs immediate interactive
    kill-on-bad-exit label multi-prog nice no-allocate no-kill no-requeue overcommit overlap oversubscribe parsable
    preserve-env propagate pty quiet reboot requeue resv-ports spread-job test-only unbuffered use-min-nodes verbose x11
"""
# Long options that need a value.
_VALUED_WORDS = """
    account acctg-freq bb begin clusters comment constraint core-spec cores-per-socket cpu-bind cpu-freq cpus-per-gpu
    chdir cpus-per-task deadline dependency distribution epilog error exclude export gpu-bind gpu-freq gpus
    gpus-per-node gpus-per-socket gpus-per-task gres het-group hint input job-name licenses mail-type mail-user mem
    mem-bind mem-per-cpu mem-per-gpu mincpus mpi network nodefile nodelist ntasks-per-core ntasks-per-gpu
    ntasks-per-node ntasks-per-socket open-mode output partition priority profile prolog qos relative reservation signal
    sockets-per-node switches task-epilog task-prolog threads threads-per-core time time-min tmp tres-per-task wrap
"""
_NO_VALUE = frozenset(_NO_VALUE_WORDS.split())
# Each long option with a value, and the short option that it stands for if that matters here.
_LONG = {**dict.fromkeys(_VALUED_WORDS.split(), ""), "array": "a", "nodes": "N", "ntasks": "n"}
_OURS = {**{f"ch-{one.name}": one.bare for one in options.OPTIONS}, **{one.name: one.bare for one in pyxis.OPTIONS}}
_NUMBER = re.compile(r"[0-9]+")


def _valued_options(program: str, words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the options with a value: the short name ("" for those that don't matter here), and the value."""
    rest = iter(words)
    for word in rest:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            is_bare = name in _NO_VALUE or _OURS.get(name) is not None or (name == "wait" and program == "sbatch")
            if not is_bare and name not in _LONG and name not in _OURS:
                return
            if not is_bare and not equals:
                value = next(rest, "")
            yield _LONG.get(name, ""), value
            continue
        if word[:1] != "-":
            return
        for at, letter in enumerate(word[1:], 2):
            if letter in _VALUED[program]:
                yield letter, word[at:] or next(rest, "")
                break
            if letter in _ATTACHED:
                break
            if letter not in _PLAIN[program]:
                return


def nodes_of_step(words: Sequence[str], env: Mapping[str, str]) -> int | None:
    """Return the smallest number of nodes that a step of `srun WORDS` can have; None if only Slurm knows."""
    given = dict(_valued_options("srun", words))
    nodes = given.get("N") or env.get("SLURM_JOB_NUM_NODES") or env.get("SLURM_NNODES") or ""
    tasks = given.get("n") or env.get("SLURM_NTASKS") or ""
    least = _NUMBER.match(nodes)
    if least is None or nodes[least.end() :][:1] not in ("", "-"):
        return None
    # srun gives a step no more nodes than tasks.
    return min(int(least[0]), int(tasks)) if _NUMBER.fullmatch(tasks) else int(least[0])


def is_array(words: Sequence[str], directives: Sequence[str], env: Mapping[str, str]) -> bool:
    """Whether `sbatch WORDS`, with these `directives` in its script, submits an array of more than one task."""
    indexes = dict(_valued_options("sbatch", words)).get("a") or env.get("SBATCH_ARRAY_INX")
    indexes = indexes or dict(_valued_options("sbatch", directives)).get("a") or ""
    return len(_NUMBER.findall(indexes.partition("%")[0])) > 1
