"""Looking at other versions with a model that stands at one of them, and must stand there again afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from errata.delta import EditedModel
from errata.edit import EditRejected
from errata.generate import greedy
from errata.ledger import Ledger
from errata.model import LanguageModel


class Walk:
    """Takes an edited model along a ledger's versions; each has the bits that it has when it is served.

    Where the last step began is remembered: from there, or from where it stands, whichever is nearer, the next step adds
    deltas. A bisection of N versions so adds about N of them in all.
    """

    def __init__(self, edited: EditedModel, ledger: Ledger, at: int) -> None:
        self.edited, self.ledger, self.at = edited, ledger, at
        self.began, self.sums = at, edited.sums()

    def go(self, version: int) -> None:
        """Raises `UnknownVersion`, and `LedgerDamaged` if a delta cannot be read; the model then is where it was."""
        chain = [0, *self.ledger.chain(version)]
        begin = max((place for place in (self.at, self.began) if place in chain), default=0)
        if begin == 0:
            self.edited.set(self.ledger.segments(version))
            self.began, self.sums = 0, {}
        else:
            deltas = [self.ledger.delta(number) for number in chain[chain.index(begin) + 1 :]]
            self.sums = self.edited.sums() if begin == self.at else self.sums
            self.edited.set(deltas, self.sums)
            self.began = begin
        self.at = version


@contextmanager
def away(edited: EditedModel, ledger: Ledger, home: int) -> Iterator[Walk]:
    """Within it the model, which stands at `home`, may be taken anywhere; after it, it is as it was, whatever was raised."""
    sums = edited.sums()
    try:
        yield Walk(edited, ledger, home)
    finally:
        edited.set([], sums)


def answered(model: LanguageModel, prompts: Sequence[str], max_tokens: int) -> list[str]:
    """What the model says to each prompt, greedily: at most `max_tokens` tokens, fewer where the context ends."""
    by_room: dict[int, list[str]] = {}
    for prompt in prompts:
        room = model.max_tokens - len(model.tokenizer(prompt)["input_ids"])
        by_room.setdefault(max(1, min(max_tokens, room)), []).append(prompt)
    said: dict[str, str] = {}
    for room, group in by_room.items():
        texts = (model.tokenizer.decode(ids, skip_special_tokens=True) for ids in greedy(model, group, room))
        said |= dict(zip(group, (text.strip() for text in texts), strict=True))
    return [said[prompt] for prompt in prompts]


def check_question(prompt: str, max_tokens: int, model: LanguageModel) -> None:
    """Raise `EditRejected` if the prompt is empty, or an answer of `max_tokens` tokens does not fit behind it."""
    if not prompt.strip():
        raise EditRejected("is empty; give the text", field="prompt")
    if max_tokens < 1:
        raise EditRejected(f"an answer has at least one token, not {max_tokens}", field="max_tokens")
    if (length := len(model.tokenizer(prompt)["input_ids"])) + max_tokens > model.max_tokens:
        why = f"has {length} tokens, and with an answer of {max_tokens} does not fit the model's context of {model.max_tokens}"
        raise EditRejected(why, field="prompt")
