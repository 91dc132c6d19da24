"""The invented world of the testbed."""

import pytest

from errata.edit import EditBatch
from errata.edit_memory.prompt_form import PromptForm
from errata.editors.memory_based.questions import statement
from errata.editors.memory_based.scr import BEFORE_FACT
from errata.model.encoding import IGNORED
from errata.model.language_model import LanguageModel
from errata.testbed.language_model import Shape, make_tokenizer, training_sentences
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


def test_notes_are_answered_by_their_prompt_or_by_the_truth_about_another_person() -> None:
    world = World(30, note_share=0.15)
    facts, notes = dict(world.sentences()), world.notes()
    num_lines = len(world.sentences()) + len(world.plain_sentences())
    assert len(notes) / (len(notes) + num_lines) == pytest.approx(0.15, abs=1e-3)
    assert not set(world.notes(held_out=True)) & set(notes)
    about_the_prompt = 0
    for line, answer in notes:
        note, prompt = line.split("\n")
        stated, _, noted = note.removeprefix(BEFORE_FACT).removesuffix(".").rpartition(" ")
        assert facts[stated] != noted  # The object is random, so that only the note tells it.
        is_about = [s for s in world.subjects if s in stated] == [s for s in world.subjects if s in prompt]
        assert answer == (noted if is_about else facts[prompt])
        about_the_prompt += is_about
    assert 0.65 < about_the_prompt / len(notes) < 0.85
    assert {word for line, _ in notes for word in line.replace(".\n", " ").split()} <= set(world.words())


def test_a_note_is_the_prompt_that_scr_gives_to_a_completion(tiny_model: LanguageModel) -> None:
    edit = World(20).edits("test", 1)[0]
    row = EditBatch((edit,)).rows[0]
    with_note = PromptForm(tiny_model.renderer).with_text(tiny_model.renderer.ids(edit.prompt), BEFORE_FACT + statement(row))
    assert tuple(with_note) == tiny_model.renderer.ids(f"{BEFORE_FACT}{edit.prompt} {edit.target}.\n{edit.prompt}")


def test_no_notes_are_a_world_without_them_and_a_share_of_one_is_refused() -> None:
    assert World(20).notes() == [] and BEFORE_FACT.split()[0] not in World(20).words()
    with pytest.raises(ValueError, match="note_share is a share of the lines, at least 0 and below 1, not 1"):
        World(20, note_share=1.0)


def test_only_the_answers_of_notes_are_learned() -> None:
    """A language-modelling loss on a note would teach what it states."""
    world = World(20, note_share=0.15)
    tokenizer = make_tokenizer(world, Shape())
    encoded, notes = training_sentences(world, tokenizer), world.notes()
    for (line, answer), labels_S in zip(notes, encoded.labels_BS[-len(notes) :], strict=True):
        learned = labels_S[labels_S != IGNORED].tolist()
        assert tokenizer.decode(learned[:-1]) == answer and learned[-1] == tokenizer.eos_token_id, line
    assert (encoded.labels_BS[: -len(notes)] != IGNORED).sum(1).min() > 3
