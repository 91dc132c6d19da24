"""The limits of what waits in the journal, edits and proposals: in number, and in bytes as JSON."""

from __future__ import annotations

from dataclasses import dataclass

_WHAT = {
    "max_queue": "edits",
    "max_queue_bytes": "bytes of edits",
    "max_proposals": "proposals",
    "max_proposal_bytes": "bytes of proposals",
}


@dataclass(frozen=True)
class QueueLimit:
    """The most edits that may wait, and the most bytes that they may have together."""

    max_edits: int = 2**62
    max_bytes: int = 2**62


class QueueFull(RuntimeError):
    """A submission that would exceed `setting`, a limit in number or in bytes of what waits; nothing of it is queued."""

    def __init__(self, used: int, added: int, limit: int, retry_after_s: int = 1, setting: str = "max_queue") -> None:
        super().__init__(used, added, limit, retry_after_s, setting)
        self.used, self.added, self.limit, self.retry_after_s, self.setting = used, added, limit, retry_after_s, setting

    @property
    def is_too_large(self) -> bool:
        """Say if the submission fits in no queue, so that it need not be repeated."""
        return self.added > self.limit

    def __str__(self) -> str:
        what, setting = _WHAT[self.setting], f"({self.setting}={self.limit})"
        if self.is_too_large:
            return f"the post has {self.added} {what}, more than may wait {setting}; post fewer in one request"
        waits = f"{self.used} {what} wait and the limit is {self.limit} {setting}"
        return f"{waits}; nothing was queued. Try again in {self.retry_after_s} s"
