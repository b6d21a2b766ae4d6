"""The launcher as a program: `python3 -I -S launch.py FACTS_FD SOCKET_FD`.

As small as can be, because the file that is run is compiled at every start.
Where a step is submitted, the plugin has `--check FACTS_FD` instead.
"""

import sys

sys.path.insert(0, __file__.rpartition("/slurm_ch/")[0])

if sys.argv[1:2] == ["--check"]:
    from slurm_ch.check import run
else:
    from slurm_ch.launcher import run

run()
