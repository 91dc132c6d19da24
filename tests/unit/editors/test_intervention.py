"""Edit positions and interventions, against the whole model run on one row at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from errata.edit import Edit, EditBatch, EditRejected
from errata.editors.closed_form.contexts import Contexts, Position, tokenise_at_subject
from errata.editors.closed_form.intervention import Intervention
from errata.model.language_model import LanguageModel
from errata.testbed.world import World
from tests.unit.editors.test_locate_then_edit import a_model

SUBJECT = World(20).subjects[0]
EDITS = (
    Edit(f"{SUBJECT} keeps a", "dog", SUBJECT),  # The subject begins the prompt.
    Edit("the old river shines near the river", "lamp", "river"),  # Its first mention counts.
    Edit("today a lamp", "ends", "lamp"),  # The subject is the last word.
)
CONTEXTS = ("", "the old river shines. ", "a lamp. ")
SITES = {"llama": "model.layers.1", "gpt2": "transformer.h.1"}


@pytest.fixture(params=SITES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def changed_by_hand(
    model: LanguageModel, site: str, ids: Sequence[int], at: int, change_D: Tensor, targets: Sequence[int]
) -> tuple[float, Tensor, Tensor]:
    """Return mean -log p of the targets, which end `ids`, the unchanged output at `at`, and log p after the last token."""
    found: list[Tensor] = []

    def add(_m: Any, _a: Any, output: Any) -> Any:
        tensor = (output[0] if isinstance(output, tuple) else output).clone()
        found.append(tensor[0, at].clone())
        tensor[0, at] += change_D
        return (tensor, *output[1:]) if isinstance(output, tuple) else tensor

    handle = model.module.get_submodule(site).register_forward_hook(add)
    with torch.no_grad():
        log_probs_SV = model.module(torch.tensor([list(ids)]), use_cache=False).logits[0].log_softmax(-1)
    handle.remove()
    first = len(ids) - len(targets)
    nll = -sum(float(log_probs_SV[first + i - 1, token]) for i, token in enumerate(targets)) / max(1, len(targets))
    return nll, found[0], log_probs_SV[-1]


def last_token_of(model: LanguageModel, text: str) -> int:
    return len(model.tokenizer(text)["input_ids"]) - 1


@pytest.mark.parametrize("position", ["subject", "prompt"])
def test_losses_are_those_of_the_whole_model(kind: str, position: Position) -> None:
    check_losses(a_model(kind), SITES[kind], position)


def check_losses(model: LanguageModel, site: str, position: Position, precision: float = 1e-5) -> None:
    """Compare the losses of a batch of edits in contexts, over cached prefixes, with those of each row alone."""
    eos = model.tokenizer.eos_token_id
    contexts = Contexts(CONTEXTS, position=position)
    place = Intervention(model, EditBatch(EDITS), site, contexts, eos=True)
    width = model.module.config.get_text_config().hidden_size
    change_nD = 20 * torch.randn(len(EDITS), width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    nll_n, kl_n = place.losses(change_nD)
    for index, edit in enumerate(EDITS):
        assert edit.subject is not None
        nlls = []
        for context in CONTEXTS:
            text = context + edit.prompt
            end = len(context) + edit.prompt.index(edit.subject) + len(edit.subject) if position == "subject" else len(text)
            targets = [*model.tokenizer(edit.target)["input_ids"], eos]
            ids = [*model.tokenizer(text)["input_ids"], *targets]
            nll, before_D, _ = changed_by_hand(model, site, ids, last_token_of(model, text[:end]), change_nD[index], targets)
            nlls.append(nll)
            if not context:
                torch.testing.assert_close(place.before_nD[index], before_D, rtol=precision, atol=precision)
        assert float(nll_n[index]) == pytest.approx(sum(nlls) / len(nlls), rel=precision)
        if position == "prompt":
            assert float(kl_n[index]) == 0.0
            continue
        anchor = model.tokenizer(f"{edit.subject} is a")["input_ids"]
        at = last_token_of(model, edit.subject)
        _, _, now_V = changed_by_hand(model, site, anchor, at, change_nD[index], [])
        _, _, base_V = changed_by_hand(model, site, anchor, at, torch.zeros_like(change_nD[0]), [])
        assert float(kl_n[index]) == pytest.approx(
            float((base_V.exp() * (base_V - now_V)).sum()), rel=100 * precision, abs=1e-6
        )


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("bos", [False, True])
def test_the_subject_is_found_with_any_padding_and_special_tokens(side: str, bos: bool) -> None:
    model = a_model("llama")
    model.tokenizer.padding_side = side
    if bos:
        name = model.tokenizer.convert_ids_to_tokens(model.tokenizer.eos_token_id)
        model.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{name} $A", special_tokens=[(name, model.tokenizer.eos_token_id)]
        )
        assert model.tokenizer("a lamp")["input_ids"][0] == model.tokenizer.eos_token_id
    asked = tokenise_at_subject(model, EditBatch(EDITS), Contexts(CONTEXTS))
    rows = asked.encoded.input_ids_BS[torch.arange(len(asked.position_B)), asked.position_B]
    last_words = [(edit.subject or "").split()[-1] for edit in EDITS for _ in CONTEXTS]
    assert rows.tolist() == model.tokenizer.convert_tokens_to_ids(last_words)
    assert asked.edit_B.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_an_edit_without_a_subject_is_refused_or_written_at_the_last_token() -> None:
    model = a_model("llama")
    batch = EditBatch((EDITS[0], Edit("the old river", "ends")))
    with pytest.raises(EditRejected, match="name it") as refused:
        tokenise_at_subject(model, batch, Contexts())
    assert refused.value.edit == 1
    positions = {p: tokenise_at_subject(model, batch, Contexts(position=p)).position_B.tolist() for p in ("either", "prompt")}
    assert positions == {"either": [1, 2], "prompt": [3, 2]}


def test_contexts_weigh_the_same_unless_the_bare_prompt_has_a_share() -> None:
    assert Contexts(CONTEXTS).weights == pytest.approx([1 / 3] * 3)
    assert Contexts(CONTEXTS, bare_share=0.5).weights == [0.5, 0.25, 0.25]
    assert Contexts(("",), bare_share=0.5).weights == [1.0]
