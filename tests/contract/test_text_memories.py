"""The contract of a memory of texts on transformers: what a prompt becomes, and that nothing else changes.

The model is random and follows no text, so a pass is compared with one over prompts that were written by hand.
"""

from __future__ import annotations

import torch

from errata.delta.accumulator import EditedModel
from errata.delta.kinds import stored
from errata.delta.memory_delta import MemoryDelta
from errata.delta.side_branch import applied
from errata.edit import EditBatch
from errata.editors.memory_based.scr import SCR
from errata.guard.inspector import Inspector
from errata.guard.limits import Guard
from errata.guard.probes import Probes
from errata.model.encoding import answer_log_probs, encode
from errata.model.generation import greedy
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from errata.testbed.world import World

EDITS = World(20).edits("test", 12)
EDITED, UNRELATED = EDITS[:3], [edit.prompt for edit in EDITS[6:9]]
EDITOR = SCR(("layers.1.mlp.down_proj",), threshold=0.999)


def edited_by(model: LanguageModel, number: int = 3) -> MemoryDelta:
    state = EDITOR.start(model, find_matrices(model.module, EDITOR.modules))
    return EDITOR.edit(model, EditBatch(tuple(EDITED[:number])), state)[0]


def by_hand(number: int = 3) -> list[str]:
    """Return the prompts of the edits as a reader of the documentation would write them."""
    expected = [f"Known fact: {edit.prompt} {edit.target}.\n{edit.prompt}" for edit in EDITED[:number]]
    return expected + [edit.prompt for edit in EDITED[number:]]


def test_a_correction_is_put_into_the_prompt_that_it_fits(tiny_model: LanguageModel) -> None:
    model, prompts = tiny_model, [edit.prompt for edit in EDITED]
    plain, expected = ([greedy(model, [prompt], 3)[0] for prompt in asked] for asked in (prompts, by_hand()))
    unrelated = greedy(model, UNRELATED, 3)
    with applied(model.module, stored(edited_by(model))):
        assert [greedy(model, [prompt], 3)[0] for prompt in prompts] == expected
        assert greedy(model, [*UNRELATED, *prompts], 3) == [*unrelated, *expected]
    assert [greedy(model, [prompt], 3)[0] for prompt in prompts] == plain


@torch.no_grad()
def test_the_teacher_forced_pass_is_that_over_the_longer_prompts(tiny_model: LanguageModel) -> None:
    model, targets = tiny_model, [edit.target for edit in EDITED]
    asked = encode(model.renderer, [edit.prompt for edit in EDITED], targets)
    expected_TV = answer_log_probs(model.module, encode(model.renderer, by_hand(), targets))
    unrelated = encode(model.renderer, UNRELATED, targets)
    plain_TV = answer_log_probs(model.module, unrelated)
    with applied(model.module, edited_by(model)):
        assert torch.allclose(answer_log_probs(model.module, asked), expected_TV, atol=1e-5)
        assert torch.equal(answer_log_probs(model.module, unrelated), plain_TV), "an unrelated question keeps its bits"


def test_a_version_reads_its_records_until_they_are_dropped(tiny_model: LanguageModel) -> None:
    model, prompts = tiny_model, [edit.prompt for edit in EDITED]
    plain, expected = ([greedy(model, [prompt], 3)[0] for prompt in asked] for asked in (prompts, by_hand()))
    edited = EditedModel(model.module, find_matrices(model.module, EDITOR.modules))
    made = edited_by(model)
    edited.add(made)
    assert [greedy(model, [prompt], 3)[0] for prompt in prompts] == expected
    again = edited_by(model)
    assert again.digest() == made.digest(), "its own texts are not read when an edit is made"
    last = MemoryDelta(made.kind, made.site, (), (made.records[2].fact,))
    with applied(model.module, last):
        assert [greedy(model, [prompt], 3)[0] for prompt in prompts] == [*expected[:2], plain[2]]
    edited.add(MemoryDelta(made.kind, made.site, (), tuple(record.fact for record in made.records)))
    assert not model.module._forward_pre_hooks and greedy(model, prompts[:1], 3) == plain[:1]


def test_the_inspector_judges_what_the_model_says_with_the_texts(tiny_model: LanguageModel) -> None:
    spec, batch = find_matrices(tiny_model.module, EDITOR.modules), EditBatch(tuple(EDITED))
    inspector = Inspector(tiny_model, spec, Guard(), Probes(tuple(UNRELATED), ()))
    found, _ = inspector.measure(batch, edited_by(tiny_model))
    assert found.efficacy == 0.0, "a random model follows no text, so the guard refuses the edits"
    assert found.locality == 1.0 and {row["prompt"] for row in found.failed} == {edit.prompt for edit in EDITED}


def test_a_prompt_without_room_stays_as_it_is(tiny_model: LanguageModel) -> None:
    made = edited_by(tiny_model, 1)
    room = tiny_model.max_tokens - len(tiny_model.renderer.ids(EDITED[0].prompt))
    plain = greedy(tiny_model, [EDITED[0].prompt], room)
    with applied(tiny_model.module, made):
        assert greedy(tiny_model, [EDITED[0].prompt], room) == plain
