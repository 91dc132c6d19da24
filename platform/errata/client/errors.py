"""Errors that the client raises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

    from errata.client.responses import ReportedFault


class ErrataError(RuntimeError):
    """A refusal by the service: HTTP status, its message, the JSON of its answer, and seconds until it may be asked again."""

    def __init__(self, status: int, message: str, answer: Any = None, retry_after_s: float | None = None) -> None:
        super().__init__(status, message, answer, retry_after_s)
        self.status, self.message, self.retry_after_s = status, message, retry_after_s
        self.answer: dict[str, Any] = answer if isinstance(answer, dict) else {}

    def __str__(self) -> str:
        return f"{self.message} (HTTP {self.status})" if self.status else self.message

    @property
    def code(self) -> str | None:
        """Reason for programs, such as `too_long` or `guard.perplexity`; None if the answer is not Errata's."""
        code = self._error.get("code")
        return code if isinstance(code, str) else None

    @property
    def edit(self) -> int | str | None:
        """Edit at fault: its position in the post, or its id."""
        return self._error.get("edit")

    @property
    def faults(self) -> list[ReportedFault]:
        """All faults that the service found in the edits, each with `edit`, `field`, `code` and `reason`."""
        faults: list[ReportedFault] | None = self._error.get("faults")
        return faults if isinstance(faults, list) else []

    @property
    def _error(self) -> dict[str, Any]:
        error = self.answer.get("error")
        return error if isinstance(error, dict) else {}

    @classmethod
    def of(cls, response: httpx.Response) -> ErrataError:
        """Make the error of an unsuccessful answer."""
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
    """No answer: the connection was refused, broke or timed out. The status is 0."""
