"""The launcher as a program: `python3 -I -S launch.py FACTS_FD SOCKET_FD`.

As small as can be, because the file that is run is compiled at every start.
"""

import sys

sys.path.insert(0, __file__.rpartition("/slurm_ch/")[0])

from slurm_ch.launcher import run

run()
