"""Wordings of questions about one subject, by relation: which of them ask for the same, and which only seem to.

A score of two questions is chosen on the kinds of subjects `TUNED` and measured on the others. Each kind has relations that are
close to each other: when a person was born, and when the person died.
"""

from __future__ import annotations

from collections.abc import Iterator

TUNED = ("person", "company", "country")

# By kind of subject and relation; the first wording is the one that is posted, {s} is the subject.
RELATIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "person": {
        "birthplace": (
            "Where was {s} born?",
            "What is the birthplace of {s}?",
            "In which town did {s} come into the world?",
            "Which city is {s} from originally?",
            "Name the place of birth of {s}.",
        ),
        "birth date": (
            "When was {s} born?",
            "What is the birthday of {s}?",
            "In which year did {s} come into the world?",
            "On what date does {s} have a birthday?",
            "Name the date of birth of {s}.",
        ),
        "death date": (
            "When did {s} die?",
            "What is the date of death of {s}?",
            "In which year did {s} pass away?",
            "On what day did the life of {s} end?",
            "Name the year in which {s} died.",
        ),
        "spouse": (
            "Who is {s} married to?",
            "Who is the spouse of {s}?",
            "What is the name of the husband or wife of {s}?",
            "Which person did {s} marry?",
            "Name the person that {s} is married to.",
        ),
        "occupation": (
            "What is the occupation of {s}?",
            "What does {s} do for a living?",
            "Which profession does {s} have?",
            "What is the job of {s}?",
            "Name the trade that {s} works in.",
        ),
        "citizenship": (
            "Which country is {s} a citizen of?",
            "What is the nationality of {s}?",
            "What citizenship does {s} hold?",
            "Whose passport does {s} carry?",
            "Name the state that {s} is a national of.",
        ),
        "residence": (
            "Which country does {s} live in?",
            "Where does {s} live?",
            "In which country is the home of {s}?",
            "What is the country of residence of {s}?",
            "Name the country where {s} resides.",
        ),
    },
    "company": {
        "founder": (
            "Who founded {s}?",
            "Who is the founder of {s}?",
            "Which person set up {s}?",
            "Who started the company {s}?",
            "Name the person who established {s}.",
        ),
        "head": (
            "Who is the chief executive of {s}?",
            "Who runs {s}?",
            "Which person leads {s}?",
            "Who is the CEO of {s}?",
            "Name the head of the company {s}.",
        ),
        "owner": (
            "Who owns {s}?",
            "Which company is the owner of {s}?",
            "To which group does {s} belong?",
            "What is the parent company of {s}?",
            "Name the group that {s} is part of.",
        ),
        "headquarters": (
            "Where is the headquarters of {s}?",
            "In which city is {s} based?",
            "Where does {s} have its head office?",
            "Which town is the seat of {s}?",
            "Name the place from which {s} is run.",
        ),
        "founding year": (
            "When was {s} founded?",
            "In which year was {s} set up?",
            "How old is the company {s}?",
            "What is the founding year of {s}?",
            "Name the year in which {s} began.",
        ),
        "product": (
            "What does {s} make?",
            "Which product is {s} known for?",
            "What does the company {s} sell?",
            "What kind of goods does {s} produce?",
            "Name the main product of {s}.",
        ),
    },
    "country": {
        "capital": (
            "What is the capital of {s}?",
            "Which city is the seat of government of {s}?",
            "From which city is {s} governed?",
            "What is the capital city of {s} called?",
            "Name the capital of {s}.",
        ),
        "largest city": (
            "What is the largest city of {s}?",
            "Which city of {s} has the most people?",
            "In {s}, which city is the biggest?",
            "What is the most populous city in {s}?",
            "Name the biggest town of {s}.",
        ),
        "head of government": (
            "Who is the prime minister of {s}?",
            "Who heads the government of {s}?",
            "Which person is premier of {s}?",
            "Who leads the government in {s}?",
            "Name the head of government of {s}.",
        ),
        "language": (
            "What is the official language of {s}?",
            "Which language do people speak in {s}?",
            "What is spoken in {s}?",
            "Which tongue is official in {s}?",
            "Name the language of {s}.",
        ),
        "population": (
            "How many people live in {s}?",
            "What is the population of {s}?",
            "How many inhabitants does {s} have?",
            "How large is the population of {s}?",
            "Name the number of inhabitants of {s}.",
        ),
    },
    "work": {
        "author": (
            "Who wrote {s}?",
            "Who is the author of {s}?",
            "Which person is {s} by?",
            "Which writer created {s}?",
            "Name the person who wrote {s}.",
        ),
        "main character": (
            "Who is the main character of {s}?",
            "Which figure is at the centre of {s}?",
            "Who is the hero of {s}?",
            "Which person is the story of {s} about?",
            "Name the protagonist of {s}.",
        ),
        "year": (
            "When was {s} published?",
            "In which year did {s} come out?",
            "What is the publication date of {s}?",
            "When did {s} first appear?",
            "Name the year in which {s} was released.",
        ),
        "language": (
            "In which language was {s} written?",
            "What is the original language of {s}?",
            "Which language is {s} in?",
            "What language did the author of {s} use?",
            "Name the language of the original of {s}.",
        ),
        "publisher": (
            "Who published {s}?",
            "Which publisher brought out {s}?",
            "What is the publishing house of {s}?",
            "By which house was {s} released?",
            "Name the publisher of {s}.",
        ),
        "country": (
            "Which country is {s} from?",
            "In which country was {s} made?",
            "What is the country of origin of {s}?",
            "Where does {s} come from?",
            "Name the country that produced {s}.",
        ),
    },
    "city": {
        "country": (
            "In which country is the city of {s}?",
            "Which country does {s} lie in?",
            "What country is {s} part of?",
            "To which state does the town of {s} belong?",
            "Tell me the country {s} is in.",
        ),
        "twin": (
            "Which city is the twin town of {s}?",
            "What is the sister city of {s}?",
            "Which city is {s} twinned with?",
            "With which town does {s} have a partnership?",
            "Name a partner city of {s}.",
        ),
        "mayor": (
            "Who is the mayor of {s}?",
            "Who governs the city of {s}?",
            "Which person is mayor in {s}?",
            "Who heads the city council of {s}?",
            "Name the mayor of the city of {s}.",
        ),
        "river": (
            "Which river flows through {s}?",
            "On which river does {s} lie?",
            "What river runs through the city of {s}?",
            "On the banks of which river was {s} built?",
            "Name the river of {s}.",
        ),
        "population": (
            "How many people live in {s}?",
            "What is the population of {s}?",
            "How many residents has the city of {s}?",
            "How big is {s} by number of people?",
            "Name the number of people in {s}.",
        ),
        "neighbouring country": (
            "Which country does {s} border on?",
            "Which foreign country is nearest to {s}?",
            "What country lies across the border from {s}?",
            "Which country can be seen from {s}?",
            "Name the country next to {s}.",
        ),
    },
    "team": {
        "coach": (
            "Who is the coach of {s}?",
            "Who trains {s}?",
            "Which person manages the team {s}?",
            "Who is in charge of the training at {s}?",
            "Name the manager of {s}.",
        ),
        "captain": (
            "Who is the captain of {s}?",
            "Which player leads {s} on the field?",
            "Who wears the armband at {s}?",
            "Who captains the team {s}?",
            "Name the team captain of {s}.",
        ),
        "stadium": (
            "What is the home stadium of {s}?",
            "Where does {s} play its home games?",
            "In which stadium does {s} play?",
            "Which ground is the home of {s}?",
            "Name the stadium of {s}.",
        ),
        "league": (
            "Which league does {s} play in?",
            "In what division is {s}?",
            "What competition does {s} take part in?",
            "To which league does the team {s} belong?",
            "Name the league of {s}.",
        ),
        "colour": (
            "What colour are the shirts of {s}?",
            "Which colours does {s} play in?",
            "What does the kit of {s} look like?",
            "In what colour does the team {s} dress?",
            "Name the colour of {s}.",
        ),
    },
}


def relation_sets(tuned: bool) -> Iterator[dict[str, tuple[str, ...]]]:
    """Yield the relations of each kind of subject, of those that a score is chosen on or of the others."""
    yield from (relations for kind, relations in RELATIONS.items() if (kind in TUNED) is tuned)
