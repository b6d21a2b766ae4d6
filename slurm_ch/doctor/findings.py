# SPDX-License-Identifier: Apache-2.0
"""The doctor's findings: records and their text."""

from __future__ import annotations

OK = "ok"
WARNING = "warning"
PROBLEM = "problem"


class Finding:
    """A finding: its grade, its subject, a text, and a remedy or ""."""

    __slots__ = ("about", "grade", "remedy", "text")

    def __init__(self, grade: str, about: str, text: str, remedy: str = "") -> None:
        self.grade = grade
        self.about = about
        self.text = text
        self.remedy = remedy

    def as_dict(self) -> dict[str, str]:
        """Return the finding as a dict for JSON."""
        return {"grade": self.grade, "about": self.about, "text": self.text, "remedy": self.remedy}

    def lines(self) -> list[str]:
        """Return the finding as one line, and a second one for the remedy if there is one."""
        lines = [f"{self.grade}: {self.about}: {self.text}"]
        return [*lines, f"    {self.remedy}"] if self.remedy else lines
