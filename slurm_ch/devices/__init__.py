# SPDX-License-Identifier: Apache-2.0
"""The Container Device Interface: what its files say, and what is to be done. Touches nothing."""
