"""Errors that the client raises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx


class ErrataError(RuntimeError):
    """The service refused: status code, what it said was wrong, the JSON of its answer, in how many seconds to ask again."""

    def __init__(self, status: int, message: str, answer: Any = None, retry_after_s: float | None = None) -> None:
        super().__init__(status, message, answer, retry_after_s)
        self.status, self.message, self.retry_after_s = status, message, retry_after_s
        self.answer: dict[str, Any] = answer if isinstance(answer, dict) else {}

    def __str__(self) -> str:
        return f"{self.message} (HTTP {self.status})" if self.status else self.message

    @property
    def edit(self) -> int | str | None:
        """Which edit is meant: its position in what was posted, or its id."""
        error = self.answer.get("error")
        return error.get("edit") if isinstance(error, dict) else None

    @classmethod
    def of(cls, response: httpx.Response) -> ErrataError:
        after = response.headers.get("Retry-After", "")
        retry_after_s = float(after) if after.isascii() and after.isdigit() else None
        try:
            answer = response.json()
        except ValueError:
            return cls(response.status_code, response.text[:500] or response.reason_phrase, None, retry_after_s)
        error = (answer.get("error") or answer.get("detail") or answer) if isinstance(answer, dict) else answer
        message = str(error.get("message", error)) if isinstance(error, dict) else str(error)
        return cls(response.status_code, message, answer, retry_after_s)


class Unreachable(ErrataError):
    """No answer came: refused, broken off, or too late. Its status is 0."""
