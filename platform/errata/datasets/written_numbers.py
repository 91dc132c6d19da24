"""Numbers of a JSON file that keep the text in which they were written, for targets such as 1.50 or 1e3."""

from __future__ import annotations


class WrittenNumber(float):
    """A number with its JSON text, which `float` alone would lose."""

    text: str

    def __new__(cls, text: str) -> WrittenNumber:
        number = super().__new__(cls, text)
        number.text = text
        return number


def integer(text: str) -> int | WrittenNumber:
    """Parse an integer of JSON. Only -0 needs its text; every other one is written as Python prints it."""
    return WrittenNumber(text) if text == "-0" else int(text)
