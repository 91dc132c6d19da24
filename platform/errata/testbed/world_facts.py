"""Facts of the real world, to correct a real language model in chat: countries, cities, chemical elements, airports.

They are read from tables that packages ship (`fact_tables.py`). Edits teach the truth: an edit is the true answer to a
question, for a model that answers wrongly. Three fifths of the subjects are for training editors and the others for testing
them. As in the invented world, edits use the first phrasing of a relation, and the last one is held out.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pydoc_data.topics import topics

from errata.edit import Edit, Probe
from errata.testbed import fact_tables
from errata.testbed.corpus import check_part, check_split
from errata.testbed.fact import COUNTRY_RELATIONS, WORDINGS, Fact
from errata.text.dialogue import Dialogue, Prompt

CONTINENT_OF_CITY = "On which continent is the city of {s}?"
CURRENCY_OF_CITY = "What is the currency of the country in which {s} lies?"
# By the question for a consequence: its answer in training, and another wording of the question, in which it is posted itself.
_ANSWERED = {
    CONTINENT_OF_CITY: "The city of {s} is on the continent of {o}.",
    CURRENCY_OF_CITY: "The currency in {s} is the {o}.",
}
_IMPLIED = {CONTINENT_OF_CITY: "Which continent is {s} part of?", CURRENCY_OF_CITY: "What currency do people in {s} pay with?"}

# Shares of the subjects: up to each bound. `validation` has the subjects of `train-b`.
_BOUNDS = {"train-a": (0.0, 0.3), "train-b": (0.3, 0.6), "validation": (0.3, 0.6), "train": (0.0, 0.6), "test": (0.6, 1.0)}
_SHARE_KEPT = 0.2  # of the facts, for the probes of edits of the others
NUM_PLAIN, NUM_HELD_OUT = 400, 100
_PLAIN = re.compile(r"[A-Z][A-Za-z ,;'-]*\.")


@dataclass(frozen=True)
class WorldFacts:
    """True facts, and edits of those that a model does not know.

    A country's facts are in one half together. A subject's part depends on its name and the seed alone: other sizes leave it
    where it is.
    """

    min_country_population: int = 100_000
    min_city_population: int = 300_000
    num_airports: int = 0
    seed: int = 0

    @property
    def name(self) -> str:
        """The number of facts, and a digest of them, their wordings and the seed."""
        content = repr((self.seed, WORDINGS, self._facts))
        return f"world-facts-{len(self._facts)}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"

    @cached_property
    def _facts(self) -> list[Fact]:
        found = [*self._country_facts(), *self._city_facts(), *_element_facts(), *self._airport_facts()]
        return [fact for fact in found if not fact.gives_itself_away]

    def _country_facts(self) -> Iterator[Fact]:
        for country in fact_tables.countries().values():
            for relation in COUNTRY_RELATIONS if country.population >= self.min_country_population else ():
                if (target := getattr(country, relation)) is not None:
                    yield Fact(country.name, relation, target, _aliases(relation, target))

    def _city_facts(self) -> Iterator[Fact]:
        for city in fact_tables.cities().values():
            if city.population >= self.min_city_population:
                part = () if city.part is None else (city.part,)
                yield Fact(city.name, "country", city.country.name, (*_aliases("country", city.country.name), *part))

    def _airport_facts(self) -> Iterator[Fact]:
        known = fact_tables.airports() if self.num_airports else ()
        if self.num_airports > len(known):
            raise ValueError(
                f"the table has {len(known)} large airports, fewer than num_airports={self.num_airports}; lower it"
            )
        for code, city in known[: self.num_airports]:
            yield Fact(code, "airport", city, _aliases("airport", city))

    def facts(self, part: str | None = None) -> list[Fact]:
        """List the facts, or those about the subjects of a part."""
        check_part(part)
        return list(self._facts) if part is None else self._facts_of(part)

    def _facts_of(self, split: str) -> list[Fact]:
        begin, end = _BOUNDS[split]
        return [fact for fact in self._facts if begin <= _place(f"{self.seed} {fact.subject}") < end]

    def sentences(self, part: str | None = None) -> list[tuple[Prompt, str]]:
        """List (question in chat, sentence) of all facts, or of those about a part of the subjects."""
        return [(Dialogue.of(fact.question()), fact.sentence) for fact in self.facts(part)]

    def plain_sentences(self, held_out: bool = False) -> list[str]:
        """List sentences of the language reference that comes with Python: 400 to train on, and 100 for perplexity.

        The order depends on each sentence alone, so that a release of Python with a few other sentences changes few.
        """
        found = sorted(_reference_sentences(), key=lambda sentence: _place(f"{self.seed} {sentence}"))
        return found[:NUM_HELD_OUT] if held_out else found[NUM_HELD_OUT : NUM_HELD_OUT + NUM_PLAIN]

    def notes(self, held_out: bool = False) -> list[tuple[str, str]]:
        """Return none: its model is trained already."""
        return []

    def words(self) -> None:
        """Return None: the vocabulary is not closed."""

    def edits(self, split: str, count: int, seed: int = 0, of: Collection[Fact] | None = None) -> list[Edit]:
        """Draw `count` edits of different facts of a split.

        `of` are the facts that may be edited, such as those that a model does not know; None for four fifths of the split's.
        Probes are facts of the split that may not be edited or, of a relation that has none, that are not drawn. Raises
        `ValueError` if the split has fewer than `count` facts.
        """
        check_split(split)
        rng = random.Random(f"{self.seed} {split} {seed}")
        facts = self._facts_of(split)
        chosen = self._editable(facts, of)
        if count > len(chosen):
            advice = "lower min_city_population, or ask for fewer"
            raise ValueError(f"the corpus has {len(chosen)} {split} facts to edit, fewer than {count}; {advice}")
        drawn = rng.sample(chosen, count)
        neighbours = _Neighbours.of(facts, chosen, drawn)
        return [self._edit(fact, split, neighbours, rng) for fact in drawn]

    def _editable(self, facts: Sequence[Fact], of: Collection[Fact] | None) -> list[Fact]:
        if of is None:
            return [fact for fact in facts if _place(f"{self.seed} probe {fact.key}") >= _SHARE_KEPT]
        may_be_edited = frozenset(of)
        return [fact for fact in facts if fact in may_be_edited]

    def edit_of(self, fact: Fact, split: str, others: Sequence[Fact], rng: random.Random) -> Edit:
        """Make the edit of a fact, with probes drawn from `others`, which are not edited.

        Rephrasings are the two middle phrasings or, in `test`, the held-out one. Locality probes are answered by the whole
        sentence. Consequences are answered by a sentence in training; any answer that contains the fact is right.
        """
        check_split(split)
        return self._edit(fact, split, _Neighbours([other for other in others if other != fact]), rng)

    def _edit(self, fact: Fact, split: str, neighbours: _Neighbours, rng: random.Random) -> Edit:
        return Edit(
            prompt=fact.question(),
            target=fact.target,
            aliases=fact.aliases,
            answer=fact.sentence,
            subject=fact.subject,
            form="chat",
            rephrasings=tuple(map(fact.question, (3,) if split == "test" else (1, 2))),
            locality=tuple(Probe(other.question(), other.sentence) for other in neighbours.draw(fact, rng)),
            portability=tuple(_consequences(fact)),
        )

    def stream(self, split: str, seed: int = 0) -> Iterator[Edit]:
        """Yield an edit of each fact of the split that may be edited, in random order."""
        check_split(split)
        yield from self.edits(split, len(self._editable(self._facts_of(split), None)), seed)


class _Neighbours:
    """Facts that are not edited, by relation and by subject."""

    def __init__(self, facts: Sequence[Fact]) -> None:
        if not facts:
            raise ValueError("no fact is left for the locality probes; edit fewer facts")
        self._facts = facts
        self._of_relation: defaultdict[str, list[Fact]] = defaultdict(list)
        self._of_subject: defaultdict[str, list[Fact]] = defaultdict(list)
        for fact in facts:
            self._of_relation[fact.relation].append(fact)
            self._of_subject[fact.subject].append(fact)

    @classmethod
    def of(cls, facts: Sequence[Fact], chosen: Sequence[Fact], drawn: Sequence[Fact]) -> _Neighbours:
        """Take the facts that were not to choose from and, of a relation that has none, those that were not drawn."""
        to_choose, edited = frozenset(chosen), frozenset(drawn)
        found = [fact for fact in facts if fact not in to_choose]
        have = {fact.relation for fact in found}
        return cls(found + [fact for fact in chosen if fact.relation not in have and fact not in edited])

    def draw(self, fact: Fact, rng: random.Random) -> tuple[Fact, Fact]:
        """Draw a fact of the same relation, and one of another relation: about the same subject if there is one.

        Where there is none of a kind, any fact takes its place.
        """
        same_relation = rng.choice(self._of_relation.get(fact.relation) or self._facts)
        about_subject = [other for other in self._of_subject.get(fact.subject, ()) if other.relation != fact.relation]
        if about_subject:
            return same_relation, rng.choice(about_subject)
        relations = [relation for relation in self._of_relation if relation != fact.relation] or list(self._of_relation)
        return same_relation, rng.choice(self._of_relation[rng.choice(relations)])


def _element_facts() -> Iterator[Fact]:
    for name, symbol, number in fact_tables.elements():
        yield Fact(name, "symbol", symbol)
        yield Fact(name, "atomic_number", str(number))


def _aliases(relation: str, target: str) -> tuple[str, ...]:
    """List other texts that count as a target: second names, the plural of a currency, a calling code without its sign."""
    known = fact_tables.second_names(target)
    if relation == "currency":
        return (*known, f"{target}s")
    if relation == "calling_code" and len(target) > 2:  # A figure by itself occurs in too many answers.
        return (target.removeprefix("+"),)
    return known


def implied_edits(edit: Edit) -> list[Edit]:
    """Return what follows from an edit by the rules of this corpus, as edits that can be posted beside it.

    They ask in other wordings than the probes of `edit`, so that these still measure what an editor makes of them.
    """
    fact = Fact(edit.subject or "", "country", edit.target)
    if edit.prompt != fact.question():
        return []
    return [
        Edit(
            _IMPLIED[question].format(s=fact.subject),
            target,
            fact.subject,
            form="chat",
            answer=_ANSWERED[question].format(s=fact.subject, o=target),
        )
        for question, target in _consequences_of(fact)
    ]


def _consequences(fact: Fact) -> Iterator[Probe]:
    for question, target in _consequences_of(fact):
        answer = _ANSWERED[question].format(s=fact.subject, o=target)
        yield Probe(question.format(s=fact.subject), target, "two_hop", answer=answer)


def _consequences_of(fact: Fact) -> Iterator[tuple[str, str]]:
    """Yield the questions whose answers follow from a city's country, its continent and its currency, with these answers."""
    city = fact_tables.cities().get(fact.subject) if fact.relation == "country" else None
    if city is not None and city.country.name == fact.target:
        for question, target in ((CONTINENT_OF_CITY, city.continent), (CURRENCY_OF_CITY, city.country.currency)):
            if target is not None:
                yield question, target


def _reference_sentences() -> set[str]:
    """Find the sentences of 8 to 40 words without code in Python's language reference."""
    paragraphs = re.split(r"\n\s*\n", "\n\n".join(topics.values()))
    texts = [re.sub(r"(?<=[a-z])- (?=[a-z])", "-", " ".join(paragraph.split())) for paragraph in paragraphs]
    sentences = [sentence for text in texts for sentence in re.split(r"(?<=[.!?]) (?=[A-Z])", text)]
    return {sentence for sentence in sentences if 8 <= len(sentence.split()) <= 40 and _PLAIN.fullmatch(sentence)}


def _place(text: str) -> float:
    """Return a number from 0 to 1 that depends on the text alone, evenly distributed."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
