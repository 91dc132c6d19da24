"""Problems of what a program is started with: each is a field and a sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

Found = TypeVar("Found")


@dataclass(frozen=True)
class Problem:
    """The field to set, and what is wrong with it and works instead, on one line."""

    field: str
    text: str

    def __str__(self) -> str:
        return f"{self.field}: {self.text}"


class Problems(list[Problem]):
    """The problems that were found so far."""

    def note(self, field: str, text: str) -> None:
        """Add a problem, whose text is made one line."""
        if (problem := Problem(field, " ".join(text.split()))) not in self:
            self.append(problem)

    def checked(self, field: str, check: Callable[..., Found], *arguments: Any) -> Found | None:
        """Return what the check returns; None if it raises `ValueError` or `OSError`, whose message becomes a problem."""
        try:
            return check(*arguments)
        except (ValueError, OSError) as wrong:
            self.note(field, str(wrong))
            return None

    def of(self, *fields: str) -> Problems:
        """Return the problems of these fields."""
        return Problems(problem for problem in self if problem.field in fields)
