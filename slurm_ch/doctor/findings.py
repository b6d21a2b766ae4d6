# SPDX-License-Identifier: Apache-2.0
"""The doctor's findings: records and their text."""

from __future__ import annotations

OK = "ok"
WARNING = "warning"
PROBLEM = "problem"


class Finding:
    """One thing found: how grave it is, what it is about, the facts, and what helps."""

    __slots__ = ("about", "grade", "remedy", "text")

    def __init__(self, grade: str, about: str, text: str, remedy: str = "") -> None:
        self.grade = grade
        self.about = about
        self.text = text
        self.remedy = remedy

    def as_dict(self) -> dict[str, str]:
        """Return the finding as JSON has it."""
        return {"grade": self.grade, "about": self.about, "text": self.text, "remedy": self.remedy}

    def lines(self) -> list[str]:
        """Return the finding as text: a line, and one for the remedy."""
        lines = [f"{self.grade}: {self.about}: {self.text}"]
        return [*lines, f"    {self.remedy}"] if self.remedy else lines
