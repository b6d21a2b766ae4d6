# SPDX-License-Identifier: Apache-2.0
"""A site that has pyxis' options."""
