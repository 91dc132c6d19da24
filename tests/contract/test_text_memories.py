"""The contract of a memory of texts on transformers: what a prompt becomes, and that nothing else changes.

The model is random and follows no text, so a pass is compared with one over prompts that were written by hand.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from errata.delta.accumulator import EditedModel
from errata.delta.kinds import stored
from errata.delta.memory_delta import MemoryDelta
from errata.delta.side_branch import applied
from errata.edit import Edit, EditBatch
from errata.editors.memory_based.ike import DEMONSTRATIONS, IKE
from errata.editors.memory_based.scr import SCR
from errata.guard.inspector import Inspector
from errata.guard.limits import Guard
from errata.guard.probes import Probes
from errata.model.encoding import answer_log_probs, encode
from errata.model.generation import greedy
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from errata.testbed.world import World
from errata.text.dialogue import Dialogue

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
    assert (found.fires, found.locality) == (0.0, None) and {row["prompt"] for row in found.failed} == {
        edit.prompt for edit in EDITED
    }


def test_a_prompt_without_room_stays_as_it_is(tiny_model: LanguageModel) -> None:
    made = edited_by(tiny_model, 1)
    room = tiny_model.max_tokens - len(tiny_model.renderer.ids(EDITED[0].prompt))
    plain = greedy(tiny_model, [EDITED[0].prompt], room)
    with applied(tiny_model.module, made):
        assert greedy(tiny_model, [EDITED[0].prompt], room) == plain


IKE_BY_HAND = """New fact: The river Talvo rises in Orsk.
Prompt:
The river Nile flows into the Mediterranean Sea

New fact: The river Talvo rises in Orsk.
Prompt:
The source of the Talvo is in Orsk

New fact: {prompt} {target}.
Prompt:
{prompt} {target}

New fact: {prompt} {target}.
Prompt:
{prompt}"""
IKE_IN_CHAT = """New fact: Where does the river Talvo rise? Orsk
Prompt:
In which town is the source of the Talvo? Orsk

New fact: {prompt} {target}
Prompt:
{prompt} {target}

New fact: {prompt} {target}"""


def demonstrated(model: LanguageModel, edits: list[Edit], number: int) -> MemoryDelta:
    editor = IKE(EDITOR.modules, threshold=0.999, num_demonstrations=number)
    return editor.edit(model, EditBatch(tuple(edits)), editor.start(model, find_matrices(model.module, editor.modules)))[0]


def test_ike_puts_demonstrations_before_the_correction(tiny_model: LanguageModel) -> None:
    model, prompts = tiny_model, [edit.prompt for edit in EDITED]
    model.module.config.max_position_embeddings *= 8  # The demonstrations are longer than the tiny model's context.
    expected = [IKE_BY_HAND.format(prompt=edit.prompt, target=edit.target) for edit in EDITED]
    wanted, unrelated = ([greedy(model, [text], 2)[0] for text in texts] for texts in (expected, UNRELATED))
    made = demonstrated(model, EDITED, 2)
    put = [f"{record.text}\n{prompt}" for record, prompt in zip(made.records, prompts, strict=True)]
    assert made.kind == "text" and put == expected
    with applied(model.module, stored(made)):
        assert [greedy(model, [prompt], 2)[0] for prompt in prompts] == wanted
        assert [greedy(model, [prompt], 2)[0] for prompt in UNRELATED] == unrelated


def test_ike_asks_in_chat_as_the_edit_does(tiny_model: LanguageModel) -> None:
    tiny_model.tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    (record,) = demonstrated(tiny_model, [replace(EDITED[0], form="chat")], 1).records
    assert record.prompt == Dialogue.of(EDITED[0].prompt)
    assert record.text == IKE_IN_CHAT.format(prompt=EDITED[0].prompt, target=EDITED[0].target)


def test_the_demonstrations_copy_update_and_retain_as_in_the_paper() -> None:
    kinds = [
        "copy" if one.fact[0].startswith(one.prompt[0]) else "update" if one.answer in one.fact[0] else "retain"
        for one in DEMONSTRATIONS
    ]
    assert [kinds.count(kind) for kind in ("copy", "update", "retain")] == [1, 3, 4]
    with pytest.raises(ValueError, match="num_demonstrations is from 0 to 8, not 9"):
        IKE(num_demonstrations=9)
