# SPDX-License-Identifier: Apache-2.0
"""What is asked for: strings in, values out. Reads no file."""
