"""Checks of a history, in the manner of Jepsen: what clients were answered is compared with the chain and with the journal.

Nothing of the service is used. A check yields a sentence for each violation. A request without an answer may have taken effect
or not, and each is accepted.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from tests.chaos.history import LOST, OUT_OF_USE, History, JournalRow, Step

SETTLED = ("applied", "rejected", "superseded", "reverted")


def lost(history: History) -> Iterator[str]:
    """Yield the acknowledged edits that are nowhere: not in the journal, or applied and gone without a request."""
    held = history.chain.ids(history.chain.head)
    for id in history.acknowledged:
        row = history.row_by_id.get(id)
        if row is None:
            yield f"edit {id[:8]} was acknowledged, and the journal does not know it"
        elif row.state == "applied" and not row.unchanged and id not in held and not _went_back(history, id):
            yield f"edit {id[:8]} is applied in version {row.version}, and left the head without a request"
        elif row.state == "rejected" and not row.may_be_refused:
            yield f"edit {id[:8]} is rejected without a fault of its own"


def doubled(history: History) -> Iterator[str]:
    """Yield the edits that a head holds twice, and the posts that one key made twice."""
    for head in {step.version for step in history.chain.heads}:
        counts = Counter(edit.id for edit in history.chain.held(head))
        yield from (f"version {head} holds edit {id[:8]} {count} times" for id, count in counts.items() if count > 1)
    by_key: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for post in history.of_kind("edit"):
        if "ids" in post.answer:
            by_key[post.given["key"]].add(tuple(post.answer["ids"]))
    yield from (f"a key was answered with {len(found)} lists of ids" for found in by_key.values() if len(found) > 1)


def accounted(history: History) -> Iterator[str]:
    """Check (a): every acknowledged edit is live, superseded by a later one, taken out, gone back from, or refused itself."""
    yield from lost(history)
    yield from doubled(history)
    reverts = {id for revert in history.of_kind("revert") for id in revert.given["edits"]}
    by_prompt: dict[str, list[JournalRow]] = defaultdict(list)
    for row in history.rows:
        by_prompt[row.prompt].append(row)
    for id in history.acknowledged:
        row = history.row_by_id.get(id)
        if row is None:
            continue
        if row.state not in SETTLED:
            yield f"edit {id[:8]} is {row.state} at the end"
        if row.state == "superseded" and not any(
            later.seq > row.seq and later.state in ("applied", "reverted") for later in by_prompt[row.prompt]
        ):
            yield f"edit {id[:8]} is superseded, and no later edit of its prompt was applied"
        if row.state == "reverted" and id not in reverts:
            yield f"edit {id[:8]} is reverted, and no client asked for it"
    yield from _pages(history)


def _pages(history: History) -> Iterator[str]:
    """Check that a walk over the pages shows every edit that was acknowledged before it began, once."""
    known = [(post.end, id) for post in history.of_kind("edit") if post.end is not None for id in post.answer.get("ids", ())]
    for page in history.of_kind("page"):
        if page.succeeded:
            shown = Counter(page.answer["ids"])
            missing = {id for end, id in known if end < page.begin} - shown.keys()
            yield from (f"a walk over all edits does not show edit {id[:8]}" for id in missing)
            yield from (f"a walk over all edits shows edit {id[:8]} {count} times" for id, count in shown.items() if count > 1)


def ordered(history: History) -> Iterator[str]:
    """Check (b): in every head, the last edit of a prompt is the last one of them that was posted."""
    for head in {step.version for step in history.chain.heads}:
        posted: dict[str, list[int]] = defaultdict(list)
        for edit in history.chain.held(head):
            if edit.id in history.row_by_id:
                posted[edit.prompt].append(history.row_by_id[edit.id].seq)
        for prompt, order in posted.items():
            if order[-1] != max(order):
                yield f"in version {head}, post {order[-1]} of {prompt!r} is made after post {max(order)}"


def at_least(history: History) -> Iterator[str]:
    """Check (c): who asks for at least a version is answered by one that follows it, or that holds its edits again."""
    chain = history.chain
    for ask in history.of_kind("ask"):
        wanted, version = ask.given.get("at_least", 0), ask.answer.get("version")
        if not ask.succeeded or not wanted or chain.follows(version, wanted):
            continue
        own = {edit.id for edit in chain.by_number[wanted].edits} if wanted in chain.by_number else set[str]()
        if not own or not own <= chain.ids(version):
            yield f"version {version} answers for at least {wanted}, and does not follow it"


def visible(history: History) -> Iterator[str]:
    """Check (d): a post that was acknowledged with `wait` is in every later answer, until the head leaves it on request."""
    chain = history.chain
    asks = [ask for ask in history.of_kind("ask") if ask.succeeded]
    for post in history.of_kind("edit"):
        if not (post.succeeded and post.given["wait"] and "version" in post.answer):
            continue
        version, made = post.answer["version"], set(post.answer["made"])
        if version not in chain.places:
            yield f"a post was acknowledged in version {version}, which there never was"
            continue
        holding = (head for head in chain.places if (made <= chain.ids(head) if made else chain.follows(head, version)))
        ways = _Ways(history, version, frozenset(holding))
        for ask in asks:
            if ask.begin >= (post.end or 0) and not ways.may_answer(ask.answer["version"], ask.end or 0):
                yield f"version {ask.answer['version']} answers after version {version} was acknowledged, and does not hold it"


@dataclass
class _Ways:
    """The ways from an acknowledged version to later heads; those of `holding` hold what was acknowledged."""

    history: History
    version: int
    holding: frozenset[int]
    _left: dict[int, list[Step | None]] = field(default_factory=dict)

    def may_answer(self, version: int, end: float) -> bool:
        """Say if a version is a later head, and either holds the edits or the step that left them was asked for until `end`."""
        if version not in self._left:
            chain = self.history.chain
            first = chain.places[self.version][0]
            later = [place for place in chain.places.get(version, ()) if place >= first]
            self._left[version] = [chain.left_at(self.holding, first, place) for place in later]
        return any(left is None or _was_asked_for(self.history, left, end) for left in self._left[version])


def forward(history: History) -> Iterator[str]:
    """Check (e): what one replica serves, and what the head is, follow the order of the heads."""
    order = [step.version for step in history.chain.heads]
    seen: dict[str, list[int]] = defaultdict(list)
    for look in sorted(history.of_kind("look"), key=lambda one: one.begin):
        if look.succeeded:
            for name, version in look.answer["replicas"].items():
                seen[f"replica {name}"].append(version)
            if "head" in look.answer:
                seen["the head"].append(look.answer["head"])
    for name, versions in seen.items():
        place = 0
        for before, version in zip([None, *versions], versions, strict=False):
            if version not in order[place:]:
                yield f"{name} goes from version {before} to {version}, which no head did"
                break
            place = order.index(version, place)


def one_answer(history: History) -> Iterator[str]:
    """Check (f): a version has one answer to a prompt, at every replica and time."""
    said: dict[tuple[str, int], set[str]] = defaultdict(set)
    for ask in history.of_kind("ask"):
        if ask.succeeded and ask.answer["version_min"] == ask.answer["version_max"]:
            said[ask.given["prompt"], ask.answer["version_min"]].add(ask.answer["text"])
    for (prompt, version), texts in said.items():
        if len(texts) > 1:
            yield f"version {version} answers {prompt!r} by {sorted(texts)}"


def agreed(history: History) -> Iterator[str]:
    """Check (g): the journal says of each edit what the chain says, and moves were made at the head that was expected."""
    chain = history.chain
    held, out = chain.ids(chain.head), chain.taken_out(chain.head)
    ever = {edit.id for version in chain.versions if version.fate != LOST for edit in version.edits}
    for row in history.rows:
        is_in, is_made = row.id in held, row.state == "applied" and not row.unchanged
        if row.state == "reverted" and (is_in or row.id not in out):
            yield f"edit {row.id[:8]} is reverted in version {row.version}, and the head does not follow that"
        elif is_made and row.id in out and not is_in:
            yield f"edit {row.id[:8]} is applied, and a version that the head follows took it out"
        elif is_made and row.id not in ever:
            yield f"edit {row.id[:8]} is applied in version {row.version}, and in no version"
        elif not is_made and row.state != "reverted" and is_in:
            yield f"edit {row.id[:8]} is {row.state} and is in the head"
    yield from (f"the head holds edit {id[:8]}, which the journal does not know" for id in held - history.row_by_id.keys())
    yield from _moves(history)


def _moves(history: History) -> Iterator[str]:
    steps = {(a.version, b.version) for a, b in zip(history.chain.heads, history.chain.heads[1:], strict=False)}
    for move in history.of_kind("rollback", "revert"):
        expected = move.given.get("expected_head")
        if move.succeeded and expected is not None:
            version = move.answer["version"]
            if version != expected and (expected, version) not in steps:
                yield f"a {move.kind} moved the head to version {version}, and not from {expected}, as it expected"
    for step in history.chain.heads:
        if step.cause == "move" and not _was_asked_for(history, step, float("inf")):
            yield f"the head was moved to version {step.version}, and no client asked for it"


def _was_asked_for(history: History, step: Step, before: float) -> bool:
    """Say if a client asked for a step before a time; a loss of a damaged version is asked for by no client."""
    if step.cause == "loss":
        return True
    if step.cause == "move":
        return any(one.given["version"] == step.version and one.begin < before for one in history.of_kind("rollback"))
    return step.cause == "revert" and any(one.begin < before for one in history.of_kind("revert"))


def _went_back(history: History, id: str) -> bool:
    """Say if the head left an edit by a client's rollback, or by a client's revert of it that the head later went back from."""
    chain = history.chain
    holding = frozenset(version.number for version in chain.versions if id in chain.ids(version.number))
    left = chain.left_at(holding, 0, len(chain.heads) - 1)
    if left is None:
        return any(version.fate == OUT_OF_USE and id in {e.id for e in version.edits} for version in chain.versions)
    if left.cause == "revert":
        is_undone = not chain.follows(chain.head, left.version)
        taken_out = chain.by_number[left.version].reverted.get("edits", ())
        return is_undone and id in taken_out and any(id in revert.given["edits"] for revert in history.of_kind("revert"))
    return left.cause == "move" and _was_asked_for(history, left, float("inf"))


CHECKS: dict[str, Callable[[History], Iterable[str]]] = dict(
    zip("abcdefg", (accounted, ordered, at_least, visible, forward, one_answer, agreed), strict=True)
)


def violations(history: History) -> dict[str, list[str]]:
    """Return what each check finds, by its letter."""
    return {letter: list(dict.fromkeys(check(history))) for letter, check in CHECKS.items()}
