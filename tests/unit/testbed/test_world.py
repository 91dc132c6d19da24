"""The invented world of the testbed."""

import pytest

from errata.testbed.world import PHRASINGS, TWO_HOP, World


def test_a_seed_determines_the_world() -> None:
    assert World(30).facts == World(30).facts != World(30, seed=1).facts


def test_test_edits_hold_out_a_phrasing_and_do_not_change_their_probes() -> None:
    world = World(30)
    train, test = world.edits("train", 40), world.edits("test", 40)
    held_out = {phrasings[-1].format(s=s) for phrasings in PHRASINGS.values() for s in world.subjects}
    assert not held_out & {p for edit in train for p in (edit.prompt, *edit.rephrasings)}
    assert {p for edit in test for p in edit.rephrasings} <= held_out
    assert not {e.subject for e in train} & {e.subject for e in test}
    facts = dict(world.sentences())
    for edits in (train, test):
        edited = {edit.subject for edit in edits}
        for edit in edits:
            assert facts[edit.prompt] != edit.target
            for probe in edit.locality:
                assert facts[probe.prompt] == probe.target
                assert not any(subject in probe.prompt for subject in edited if subject)


def test_moving_the_birthplace_moves_the_home_country() -> None:
    world = World(30)
    moved = [edit for edit in world.edits("test", 60) if edit.portability]
    assert moved
    for edit in moved:
        assert edit.portability[0].prompt == TWO_HOP[0].format(s=edit.subject)
        assert edit.portability[0].target == world.country_of[edit.target]


def test_perplexity_sentences_are_not_trained_on() -> None:
    world = World(20)
    assert len(world.plain_sentences(held_out=True)) == 100
    assert not set(world.plain_sentences()) & set(world.plain_sentences(held_out=True))


def test_too_many_edits_for_a_world_are_refused() -> None:
    with pytest.raises(ValueError, match="raise num_subjects"):
        World(20).edits("test", 1000)
