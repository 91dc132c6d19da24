"""The base of a ledger: the model's folder, the content of its weights, and the matrices that are edited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SHOWN = 4  # matrices in a message
LAST = "or another ledger"


def check_base(directory: str | Path, held: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raise `ValueError` if the ledger in `directory`, over the base `held`, does not fit the base `asked`.

    Bases are {"model": path, "fingerprint": str, "matrices": [names]}; what `asked` lacks is not compared.
    """
    held = {name: held[name] for name in asked if name in held}
    if str(held.get("model", "")) != str(asked.get("model", "")):
        raise ValueError(f"the ledger in {directory} is over {held['model']}, not {asked['model']}: give that model, {LAST}")
    had, now = str(held.get("fingerprint", "")), str(asked.get("fingerprint", ""))
    if had != now:
        raise ValueError(
            f"the ledger in {directory} is over other weights (SHA-256 {had[:12]}) than {asked.get('model', 'the model')} has "
            f"now ({now[:12]}): give the folder of those weights, {LAST}"
        )
    if set(held.get("matrices", ())) != set(asked.get("matrices", ())):
        raise ValueError(
            f"the ledger in {directory} holds edits of {_some(held['matrices'])}, and this editor changes "
            f"{_some(asked['matrices'])}: give the settings or the artifact that it was made with, {LAST}"
        )


def _some(names: Sequence[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} other matrices" if rest > 0 else "")
