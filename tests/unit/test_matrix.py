# SPDX-License-Identifier: Apache-2.0
"""What `make matrix` leaves out on an old release."""

from __future__ import annotations

from etc import matrix
from tests.checkout import ROOT


def test_what_is_left_out_is_there() -> None:
    """Else a test that got another name fails on the old release, an hour later."""
    for names in matrix.LEFT_OUT.values():
        for name in names:
            path, _, test = name.partition("::")
            assert f"def {test.partition('[')[0]}" in (ROOT / path).read_text(), name
