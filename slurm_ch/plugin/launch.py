# SPDX-License-Identifier: Apache-2.0
"""The launcher as a program: `python3 -I -S launch.py FACTS_FD SOCKET_FD ERRORS_FD [NODE [USER_FD MOUNT_FD]]`.

As small as can be, because the file that is run is compiled at every start.
Standard error leads nowhere: what the interpreter and its libraries say in
distress is a screenful. Lines of ours go to ERRORS_FD.
Where a step is submitted, the plugin has `--check FACTS_FD` instead; at a step's end, ch-join has
`--save 1 2 NODE USER_FD MOUNT_FD ...`: what it writes in distress goes where a launcher's does.
"""

import gc
import marshal
import posix
import sys

# It would only look for garbage among what is being imported, and we end soon.
gc.disable()
ABOVE = __file__.rpartition("/slurm_ch/")[0]
HERE = f"{ABOVE}/slurm_ch"
# Behind the interpreter's own: nothing else is looked for there.
sys.path.append(ABOVE)

try:
    # Nearly all in one file, where that is as new as the sources.
    cache = f"{HERE}/plugin/__pycache__"
    bundle, names = (), {"load": None}
    try:
        fd = posix.open(f"{cache}/launch.{sys.implementation.cache_tag}.all.pyc", posix.O_RDONLY | posix.O_CLOEXEC)
        head = posix.read(fd, 8)
        if head[:4] == sys.modules["_frozen_importlib_external"].MAGIC_NUMBER:
            bundle = marshal.loads(posix.read(fd, int.from_bytes(head[4:], "little")))  # noqa: S302
    except (OSError, EOFError, ValueError, TypeError):
        pass
    if bundle:
        exec(bundle[0], names)  # noqa: S102 (as trusted as the sources)
    loaded = bundle and names["load"](HERE, bundle, fd)
    # As with all cached bytecode: who can write it makes it.
    if not loaded and posix.access(cache, posix.W_OK) and not sys.dont_write_bytecode:
        from slurm_ch.plugin.bundle import renew

        renew(HERE)
    from slurm_ch.agreement import CHECK_OPTION, JOB_END_OPTION, SAVE_OPTION

    if sys.argv[1:2] == [CHECK_OPTION]:
        from slurm_ch.plugin.submit_check import run
    elif sys.argv[1:2] == [JOB_END_OPTION]:
        from slurm_ch.plugin.job_end import run
    elif sys.argv[1:2] == [SAVE_OPTION]:
        from slurm_ch.plugin.save import run
    else:
        from slurm_ch.plugin.launcher import run
except Exception as error:
    # Neither log.py nor tickets.py may have been found. Where even the agreement is missing, no
    # ticket comes, and ch-join has words for that. A check's descriptors are its own to spoil.
    words = " ".join(str(error).split()) or type(error).__name__
    node = "".join(f"{name}: " for name in sys.argv[4:5] if name)
    posix.write(int(sys.argv[:4][-1]), f"slurm-ch: {node}error: can't load the launcher: {words}\n".encode())
    # A directory that could not be looked at once counts as missing, and is not looked at again.
    sys.path_importer_cache.clear()
    from slurm_ch.agreement import EXIT_SETUP, TICKET_MAGIC

    posix.write(int(sys.argv[2]), TICKET_MAGIC.encode() + EXIT_SETUP.to_bytes(4, "little"))
    posix._exit(EXIT_SETUP)

run()
