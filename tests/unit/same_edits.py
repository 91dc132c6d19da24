"""Pairs of edits, and whether the second repeats the first, contradicts it, or concerns another prompt.

Files of edits and batches of the service must judge them alike.
"""

from __future__ import annotations

import pytest

from errata.edit import Edit
from errata.text.dialogue import Message

SYSTEM = (Message("system", "Sois bref, Rene\u0301."),)
SAME_SYSTEM, OTHER_SYSTEM = (Message("system", "Sois bref,  René."),), (Message("system", "Sois bref."),)
PAIRS = {
    "the same": (Edit("Who?", "Ann"), Edit("Who?", "Ann"), "repeats"),
    "another target": (Edit("Who?", "Ann"), Edit("Who?", "Bob"), "contradicts"),
    "prompts in NFC and NFD": (Edit("Who is René?", "Ann"), Edit("Who is Rene\u0301?", "Bob"), "contradicts"),
    "targets in NFC and NFD": (Edit("Who?", "René"), Edit("Who?", "Rene\u0301"), "repeats"),
    "a ligature in the prompt": (Edit("Who is in the office?", "Ann"), Edit("Who is in the oﬃce?", "Bob"), "is apart"),
    "case of the prompt": (Edit("Who?", "Ann"), Edit("who?", "Bob"), "is apart"),
    "case of the target": (Edit("Who?", "Ann"), Edit("Who?", "ann"), "contradicts"),
    "blanks of the prompt": (Edit("Who is it?", "Ann"), Edit(" Who  is\u3000it?\n", "Bob"), "contradicts"),
    "blanks of the target": (Edit("Where?", "New York"), Edit("Where?", "New  York"), "repeats"),
    "zero-width spaces": (Edit("រាជធានីនៃ\u200bកម្ពុជា", "ក"), Edit("រាជធានីនៃកម្ពុជា", "ខ"), "contradicts"),
    "an alias": (Edit("Who?", "Ann", aliases=("Anna",)), Edit("Who?", "Anna"), "contradicts"),
    "chat, completion": (Edit("Who?", "Ann", form="chat"), Edit("Who?", "Bob"), "is apart"),
    "both forms, completion": (Edit("Who?", "Ann", form="both"), Edit("Who?", "Bob"), "contradicts"),
    "both forms, chat": (Edit("Who?", "Ann", form="both"), Edit("Who?", "Ann", form="chat"), "repeats"),
    "both forms twice": (Edit("Who?", "Ann", form="both"), Edit("Who?", "Bob", form="both"), "contradicts"),
    "messages in NFC and NFD": (
        Edit("Qui ?", "Ann", form="chat", before=SYSTEM),
        Edit("Qui ?", "Bob", form="chat", before=SAME_SYSTEM),
        "contradicts",
    ),
    "other messages": (
        Edit("Qui ?", "Ann", form="chat", before=SYSTEM),
        Edit("Qui ?", "Bob", form="chat", before=OTHER_SYSTEM),
        "is apart",
    ),
}
each_pair = pytest.mark.parametrize(("one", "other", "verdict"), PAIRS.values(), ids=PAIRS)
