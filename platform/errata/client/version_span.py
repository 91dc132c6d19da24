"""The versions that gave the answers of several requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict


class VersionSpan(TypedDict):
    """The oldest and the newest version that answered."""

    version_min: int
    version_max: int


def oldest_and_newest(stamps: Sequence[VersionSpan]) -> VersionSpan:
    return {
        "version_min": min((stamp["version_min"] for stamp in stamps), default=0),
        "version_max": max((stamp["version_max"] for stamp in stamps), default=0),
    }
