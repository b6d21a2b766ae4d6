# SPDX-License-Identifier: Apache-2.0
"""Turn a request for a container into a record: strings in, values out. Reads no file.

The options:
    options parsers spec    the table of options, a parser for each, and the record that they become
Other sources of options:
    site                    plugstack.conf's arguments
    words                   the command line of `slurm-ch run`
The step:
    step anchor             Slurm's variables of a step; relative paths in defaults for steps
For pyxis users:
    pyxis pyxis_mounts pyxis_site compatibility
                            pyxis' options, and how a container differs that was requested by them
"""
