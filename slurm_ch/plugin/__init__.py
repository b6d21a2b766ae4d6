# SPDX-License-Identifier: Apache-2.0
"""What the SPANK plugin starts: the launcher, and the check where a job is submitted."""
