"""Checks of the service's address, and of ids that become part of a path."""

from __future__ import annotations

from urllib.parse import urlsplit


def check_url(url: str) -> None:
    """Raise `ValueError` unless this is the address of a service, without a name or a key in it."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        shown = "" if "@" in url else f", not {url!r}"  # the part before an @ may be a key
        raise ValueError(f"the service's address is http://HOST:PORT{shown}")
    if "@" in parts.netloc:
        raise ValueError("the service's address contains a name or a key; the key belongs into ERRATA_KEY")


def checked_id(edit_id: str) -> str:
    """Return the id for use in a path. Raises `ValueError` for text that would change the path."""
    if not edit_id or not edit_id.isalnum() or not edit_id.isascii():
        raise ValueError(f"{edit_id!r} is not the id of an edit; `errata edits` lists them")
    return edit_id
