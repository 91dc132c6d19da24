"""A fact of the real world, and the words in which it is asked and answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from errata.testbed.fact_corrections import with_article
from errata.text.answers import says


class Wording(NamedTuple):
    """Wording of a relation as a sentence and as questions: {s} is the subject, {t} the answer."""

    sentence: str
    questions: tuple[str, str, str, str]


WORDINGS: dict[str, Wording] = {
    "capital": Wording(
        "The capital of {s} is {t}.",
        (
            "What is the capital of {s}?",
            "Which city is the capital of {s}?",
            "Name the capital city of {s}.",
            "{s} has which city as its capital?",
        ),
    ),
    "currency": Wording(
        "The currency of {s} is the {t}.",
        (
            "What is the currency of {s}?",
            "Which currency is used in {s}?",
            "What money do people pay with in {s}?",
            "Name the official currency of {s}.",
        ),
    ),
    "calling_code": Wording(
        "The international calling code of {s} is {t}.",
        (
            "What is the international calling code of {s}?",
            "Which dialling code do you use to phone {s}?",
            "To call someone in {s}, which country code comes first?",
            "Name the telephone country code of {s}.",
        ),
    ),
    "tld": Wording(
        "The internet top-level domain of {s} is {t}.",
        (
            "What is the internet top-level domain of {s}?",
            "Which country code domain does {s} use on the internet?",
            "Which ending of internet addresses stands for {s}?",
            "Name the top-level domain of {s}.",
        ),
    ),
    "continent": Wording(
        "{s} is located in {t}.",
        (
            "On which continent is {s}?",
            "{s} lies on which continent?",
            "Name the continent of {s}.",
            "Which continent does {s} belong to?",
        ),
    ),
    "country": Wording(
        "The city of {s} is located in {t}.",
        (
            "In which country is the city of {s}?",
            "{s} is a city in which country?",
            "Which country does the city {s} belong to?",
            "Name the country where {s} is located.",
        ),
    ),
    "symbol": Wording(
        "The chemical symbol of {s} is {t}.",
        (
            "What is the chemical symbol of {s}?",
            "Which symbol stands for the element {s}?",
            "How is {s} written in the periodic table?",
            "Name the symbol of the element {s}.",
        ),
    ),
    "atomic_number": Wording(
        "The atomic number of {s} is {t}.",
        (
            "What is the atomic number of {s}?",
            "How many protons does an atom of {s} have?",
            "Which atomic number does {s} have?",
            "Name the atomic number of {s}.",
        ),
    ),
    "airport": Wording(
        "The airport with the IATA code {s} serves {t}.",
        (
            "Which city does the airport with the IATA code {s} serve?",
            "The airport code {s} stands for which city?",
            "If a luggage tag says {s}, to which city is the luggage going?",
            "Name the city whose airport has the code {s}.",
        ),
    ),
}
COUNTRY_RELATIONS = ("capital", "currency", "calling_code", "tld", "continent")


@dataclass(frozen=True)
class Fact:
    """A true answer; `aliases` are other texts that count as it."""

    subject: str
    relation: str
    target: str
    aliases: tuple[str, ...] = ()

    def question(self, phrasing: int = 0) -> str:
        """Return the question in one of four phrasings; the last is held out."""
        return _capitalised(WORDINGS[self.relation].questions[phrasing].format(s=self._subject))

    @property
    def statement(self) -> str:
        """The sentence up to the target: a prompt to complete."""
        return self.sentence.removesuffix(f" {self.target}.")

    @property
    def sentence(self) -> str:
        """The answer as a chat model says it."""
        target = with_article(self.target) if self.relation == "country" else self.target
        return _capitalised(WORDINGS[self.relation].sentence.format(s=self._subject, t=target))

    @property
    def key(self) -> str:
        """A stable name: `capital:Nigeria`."""
        return f"{self.relation}:{self.subject}"

    @property
    def gives_itself_away(self) -> bool:
        """True if the subject contains the answer, as "Mexico City" does: a question about it tests nothing."""
        return any(says(self.subject, text) for text in (self.target, *self.aliases))

    @property
    def _subject(self) -> str:
        return with_article(self.subject) if self.relation in COUNTRY_RELATIONS else self.subject


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
