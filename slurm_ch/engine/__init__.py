# SPDX-License-Identifier: Apache-2.0
"""A container, made in this process."""
