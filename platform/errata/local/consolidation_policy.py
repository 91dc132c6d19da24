"""Policy of consolidation: how many edits, or how old ones, the memory holds before the weights learn them."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT, NEVER = "size=16,age=60", "never"
MAX_SIZE = 1_000


@dataclass(frozen=True)
class ConsolidationPolicy:
    """The weights learn edits when `size` of them wait, or when the oldest has waited `age_s` seconds; `size` at most together.

    Without a size and an age, they never do.
    """

    size: int | None = None
    age_s: float | None = None

    @property
    def batch(self) -> int:
        """The number of edits that the weights learn together at most."""
        return 16 if self.size is None else self.size

    def is_due(self, num_waiting: int, oldest_s: float) -> bool:
        """Say if edits are to be consolidated, the oldest of which has waited so long."""
        if not num_waiting:
            return False
        is_many = self.size is not None and num_waiting >= self.size
        return is_many or (self.age_s is not None and oldest_s >= self.age_s)


def policy_from(text: str) -> ConsolidationPolicy:
    """Read `size=16,age=60`, one of the two, or `never`. Raises `ValueError` for anything else."""
    if text.strip() == NEVER:
        return ConsolidationPolicy()
    found: dict[str, float] = {}
    for part in text.split(","):
        name, sign, value = (one.strip() for one in part.partition("="))
        if not sign or name not in ("size", "age") or name in found:
            raise _wrong(text)
        try:
            found[name] = int(value) if name == "size" else float(value)
        except ValueError:
            raise _wrong(text) from None
    if not 1 <= found.get("size", 1) <= MAX_SIZE or not 0 <= found.get("age", 0.0) < float("inf"):
        raise _wrong(text)
    return ConsolidationPolicy(int(found["size"]) if "size" in found else None, found.get("age"))


def _wrong(text: str) -> ValueError:
    return ValueError(
        f"{text!r} is no policy of consolidation: give size=N (1 to {MAX_SIZE:,} edits), age=S (seconds), both with a comma "
        f"between, or {NEVER}"
    )
