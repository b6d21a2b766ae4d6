# SPDX-License-Identifier: Apache-2.0
"""Tests of images from registries and archives: the package slurm_ch.images and its commands."""
