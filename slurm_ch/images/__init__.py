# SPDX-License-Identifier: Apache-2.0
"""Images from registries and archives: looked up, fetched, merged into one SquashFS file, and kept.

Loaded only where an image is a reference; a step whose image is a file never does.
"""
