# SPDX-License-Identifier: Apache-2.0
"""Images from registries and archives: the package slurm_ch.images and its commands."""
