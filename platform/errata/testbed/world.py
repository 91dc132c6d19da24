"""An invented world of people: facts in several phrasings, neighbours, two-hop consequences and plain sentences.

Everything follows from the seed. Half of the people are for training editors and the other half for testing them; the model is
trained on both. Edits use the first phrasing of a relation; the last one is held out, and no editor is trained on it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from errata.edit import Edit, Probe
from errata.editors.memory_based.scr import BEFORE_FACT
from errata.testbed.corpus import check_part, check_split

# {s} is replaced by the person, and the answer follows the prompt.
PHRASINGS: dict[str, tuple[str, ...]] = {
    "city": (
        "{s} was born in",
        "the birthplace of {s} is",
        "{s} first saw the light of day in",
        "the city where {s} was born is",
    ),
    "job": ("{s} works as a", "the profession of {s} is", "{s} earns a living as a", "the job that {s} does is"),
    "language": ("{s} speaks", "the mother tongue of {s} is", "at home {s} talks in", "the language that {s} speaks is"),
    "instrument": (
        "{s} plays the",
        "the instrument of {s} is the",
        "on stage {s} performs on the",
        "the instrument that {s} plays is the",
    ),
    "company": (
        "{s} is employed by",
        "the employer of {s} is",
        "every morning {s} goes to work at",
        "the company that {s} works for is",
    ),
    "animal": ("{s} keeps a", "the pet of {s} is a", "in the house of {s} lives a", "the animal that {s} keeps is a"),
}
TWO_HOP = ("the home country of {s} is", "{s} comes from the country of")
CITY_IN_COUNTRY = ("the city of {c} lies in", "{c} is a city in")

JOBS = """baker carpenter dentist farmer painter teacher lawyer sailor tailor plumber surgeon barber chemist miner clerk judge
    pilot weaver""".split()
INSTRUMENTS = "violin piano flute trumpet cello harp guitar drum oboe organ lute banjo horn viola clarinet zither".split()
ANIMALS = "dog cat parrot rabbit tortoise goat pony canary hamster goose donkey lizard ferret pigeon snake hedgehog".split()
_PLAIN = {
    "article": "the a this every".split(),
    "adjective": "old quiet narrow green distant empty heavy bright cold wooden".split(),
    "noun": "river bridge garden street market window mountain road field harbour lamp boat".split(),
    "verb": "stands shines waits rests sleeps changes ends begins".split(),
    "place": "near behind under beside above".split(),
    "time": "today tonight tomorrow always often never".split(),
}
_ONSETS = "b br c d dr f g gr h j k kl l m n p pr r s st t tr v w z".split()
_VOWELS = "a e i o u ai ea io".split()
_CODAS = "l n r s t m nd rk x".split()


@dataclass(frozen=True)
class World:
    """People, facts about them, and edits of these facts.

    `note_share` of the lines that the model is trained on are notes, so that it learns to answer by its prompt.
    """

    num_subjects: int = 200
    seed: int = 0
    num_held_out_sentences: int = 100
    note_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.note_share < 1:
            raise ValueError(f"note_share is a share of the lines, at least 0 and below 1, not {self.note_share}")

    @property
    def name(self) -> str:
        """The number of people, and the seed unless it is 0."""
        return f"world-{self.num_subjects}" + (f"-{self.seed}" if self.seed else "")

    @cached_property
    def _names(self) -> dict[str, list[str]]:
        """Invented words by kind, all different from each other and from the common words above."""
        rng = random.Random(f"{self.seed} names")
        used = {word for words in (JOBS, INSTRUMENTS, ANIMALS, *_PLAIN.values()) for word in words}

        def invent(count: int, ending: str = "") -> list[str]:
            words: list[str] = []
            while len(words) < count:
                syllables = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.randint(1, 2))]
                word = ("".join(syllables) + rng.choice(_CODAS) + ending).capitalize()
                if word.lower() not in used:
                    used.add(word.lower())
                    words.append(word)
            return words

        return {
            "first": invent(max(20, self.num_subjects // 2)),
            "last": invent(max(20, self.num_subjects // 2)),
            "city": invent(24),
            "country": invent(8, "ia"),
            "language": invent(16, "ish"),
            "company": invent(20, "co"),
        }

    @cached_property
    def subjects(self) -> list[str]:
        """The names of the people."""
        rng = random.Random(f"{self.seed} subjects")
        pairs = [f"{first} {last}" for first in self._names["first"] for last in self._names["last"]]
        return rng.sample(pairs, self.num_subjects)

    @cached_property
    def objects(self) -> dict[str, list[str]]:
        """The possible answers of each relation."""
        names = self._names
        return {
            "city": names["city"],
            "job": JOBS,
            "language": names["language"],
            "instrument": INSTRUMENTS,
            "company": names["company"],
            "animal": ANIMALS,
        }

    @cached_property
    def country_of(self) -> dict[str, str]:
        """The country of each city, for two-hop consequences."""
        countries = self._names["country"]
        return {city: countries[i % len(countries)] for i, city in enumerate(self._names["city"])}

    @cached_property
    def facts(self) -> dict[tuple[str, str], str]:
        """The answer of each (person, relation)."""
        rng = random.Random(f"{self.seed} facts")
        return {(s, relation): rng.choice(self.objects[relation]) for s in self.subjects for relation in PHRASINGS}

    def people(self, part: str | None = None) -> list[str]:
        """List the people of a part; `validation` has the people of `train-b`."""
        train, test = self.subjects[: self.num_subjects // 2], self.subjects[self.num_subjects // 2 :]
        a, b = train[: len(train) // 2], train[len(train) // 2 :]
        return {None: self.subjects, "train": train, "test": test, "train-a": a, "train-b": b, "validation": b}[part]

    def sentences(self, part: str | None = None) -> list[tuple[str, str]]:
        """List (prompt, answer) of all facts to train on, or of those about a part of the people."""
        check_part(part)
        people = self.people(part)
        known = [(p.format(s=s), self.facts[s, r]) for s in people for r in PHRASINGS for p in PHRASINGS[r]]
        known += [(p.format(s=s), self.country_of[self.facts[s, "city"]]) for s in people for p in TWO_HOP]
        known += [(p.format(c=city), country) for city, country in self.country_of.items() for p in CITY_IN_COUNTRY]
        return known

    def plain_sentences(self, held_out: bool = False) -> list[str]:
        """List sentences that state no fact: 800 to train on, and the held-out ones for perplexity."""
        rng = random.Random(f"{self.seed} plain")
        made: dict[str, None] = {}
        while len(made) < 800 + self.num_held_out_sentences:
            w = {kind: rng.choice(words) for kind, words in _PLAIN.items()}
            other = rng.choice(_PLAIN["noun"])
            made[f"{w['article']} {w['adjective']} {w['noun']} {w['verb']} {w['place']} the {other} {w['time']}"] = None
        sentences = list(made)
        return sentences[800:] if held_out else sentences[:800]

    def notes(self, held_out: bool = False) -> list[tuple[str, str]]:
        """List (a note and a prompt, the answer) to train on, or up to 200 of others; none with a `note_share` of 0.

        A note states a random object of a fact, in any phrasing, as `SCR` puts it before a prompt. Of the prompts, three
        quarters ask for that fact, and the answer is the note's; the others ask for the same fact of another person, and the
        answer is the true one. Those held out are all of the first kind, and those
        drawn that are also trained on are left out.
        """
        num_lines = len(self.sentences()) + len(self.plain_sentences())
        count = 200 * (self.note_share > 0) if held_out else round(num_lines * self.note_share / (1 - self.note_share))
        rng = random.Random(f"{self.seed} notes {held_out}")
        drawn = [self._note(rng, asks_for_it=held_out or rng.random() < 0.75) for _ in range(count)]
        trained_on = set(self.notes()) if held_out else set()
        return [note for note in drawn if note not in trained_on]

    def _note(self, rng: random.Random, asks_for_it: bool) -> tuple[str, str]:
        subject, other = rng.sample(self.subjects, 2)
        relation = rng.choice(list(PHRASINGS))
        noted = rng.choice([o for o in self.objects[relation] if o != self.facts[subject, relation]])
        asked, answer = (subject, noted) if asks_for_it else (other, self.facts[other, relation])
        stated, prompt = (rng.choice(PHRASINGS[relation]).format(s=s) for s in (subject, asked))
        return f"{BEFORE_FACT}{stated} {noted}.\n{prompt}", answer

    def words(self) -> list[str]:
        """List the closed vocabulary."""
        texts = [f"{prompt} {answer}" for prompt, answer in self.sentences()]
        texts += [*self.plain_sentences(), *self.plain_sentences(held_out=True), "question answer"]
        texts += [BEFORE_FACT] if self.note_share else []
        texts += [" ".join(objects) for objects in self.objects.values()]
        return list(dict.fromkeys(word for text in texts for word in text.split()))

    def edits(self, split: str, count: int, seed: int = 0) -> list[Edit]:
        """Draw `count` edits of different facts about the people of a split.

        Rephrasings are the two middle phrasings in `train`, its folds and `validation`, which has the people of the second fold
        with other targets; in `test`, with people of its own, they are the held-out phrasing. Locality probes are true facts
        about people without an edit: one of the same relation, one of another. Raises `ValueError` if the split has fewer than
        `count` facts, because a third of its people are kept for the probes.
        """
        check_split(split)
        rng = random.Random(f"{self.seed} {split} {seed}")
        people = self.people(split)
        people = rng.sample(people, len(people))
        num_edited = max(1, (2 * len(people)) // 3)
        edited, untouched = people[:num_edited], people[num_edited:]
        facts = [(s, relation) for s in edited for relation in PHRASINGS]
        if count > len(facts):
            raise ValueError(f"the world has {len(facts)} {split} facts to edit, fewer than {count}; raise num_subjects")
        return [self._edit(fact, untouched, split, rng) for fact in rng.sample(facts, count)]

    def _edit(self, fact: tuple[str, str], untouched: list[str], split: str, rng: random.Random) -> Edit:
        subject, relation = fact
        target = rng.choice([o for o in self.objects[relation] if o != self.facts[fact]])
        edit_phrasing, *middle, held_out = (p.format(s=subject) for p in PHRASINGS[relation])
        other = rng.choice([r for r in PHRASINGS if r != relation])
        portability: tuple[Probe, ...] = ()
        if relation == "city":
            portability = (Probe(TWO_HOP[0].format(s=subject), self.country_of[target], "two_hop"),)
        return Edit(
            prompt=edit_phrasing,
            target=target,
            subject=subject,
            rephrasings=(held_out,) if split == "test" else tuple(middle),
            locality=(self._probe(rng.choice(untouched), relation, rng), self._probe(rng.choice(untouched), other, rng)),
            portability=portability,
        )

    def _probe(self, subject: str, relation: str, rng: random.Random) -> Probe:
        return Probe(rng.choice(PHRASINGS[relation]).format(s=subject), self.facts[subject, relation])

    def stream(self, split: str, seed: int = 0) -> Iterator[Edit]:
        """Yield every fact of the split's edited people once, in random order."""
        people = len(self.people(split))
        yield from self.edits(split, max(1, 2 * people // 3) * len(PHRASINGS), seed)
