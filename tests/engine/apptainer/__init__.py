# SPDX-License-Identifier: Apache-2.0
"""app.sif, as Apptainer itself makes one, and what it is made of: greet.c, app.def, make.py."""
