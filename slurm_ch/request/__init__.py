# SPDX-License-Identifier: Apache-2.0
"""What is asked for: strings in, values out. Reads no file.

The options
    options parsers spec    which options there are, what each value means, and the record that they become
Where else they are said
    site                    the site's part: plugstack.conf's arguments
    words                   a command line of `slurm-ch run`
What Slurm says
    step anchor             what Slurm says of a step; relative paths that become defaults of steps
For users of pyxis
    pyxis pyxis_mounts pyxis_site compatibility
                            pyxis' options, and how the container differs from a usual one then
"""
