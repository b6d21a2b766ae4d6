# SPDX-License-Identifier: Apache-2.0
"""The launcher as a program: `python3 -I -S launch.py FACTS_FD SOCKET_FD ERRORS_FD`.

As small as can be, because the file that is run is compiled at every start.
Standard error leads nowhere: what the interpreter and its libraries say in
distress is a screenful. Lines of ours go to ERRORS_FD.
Where a step is submitted, the plugin has `--check FACTS_FD` instead.
"""

import gc
import posix
import sys

# It would only look for garbage among what is being imported, and we end soon.
gc.disable()
sys.path.insert(0, __file__.rpartition("/slurm_ch/")[0])

try:
    from slurm_ch import agreement

    if sys.argv[1:2] == [agreement.CHECK_OPTION]:
        from slurm_ch.plugin.submit_check import run
    else:
        from slurm_ch.plugin.launcher import run
except Exception as error:
    # Neither log.py nor tickets.py may have been found; the user and ch-join are told all the same, unless
    # nothing of us is there: then ch-join has words for a launcher that left without any.
    known = sys.modules.get("slurm_ch.agreement")
    tasks = sys.argv[2:4]
    words = " ".join(str(error).split()) or type(error).__name__
    said = f"slurm-ch: error: can't load the launcher: {words}\n".encode()
    posix.write(int(tasks[1]) if len(tasks) > 1 else 2, said)
    if known and len(tasks) > 1:
        posix.write(int(tasks[0]), known.TICKET_MAGIC.encode() + known.EXIT_SETUP.to_bytes(4, "little"))
    posix._exit(known.EXIT_SETUP if known else 1)

run()
