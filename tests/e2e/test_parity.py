"""Parity of vLLM with transformers: equal greedy tokens for every kind of delta, after swaps, resets and rollbacks.

One engine for the file, over a Llama 3 (its rotary scaling, grouped queries, tied embeddings) with biases that are not zero. It
is asked completions, and dialogues with and without a system prompt and earlier turns.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from errata.delta.parts import Dense, LowRank, Part, Piece, Series, Sparse
from errata.delta.weight_delta import WeightDelta
from errata.edit import batches_of
from errata.model.matrices import find_matrices
from errata.testbed.language_model import Shape, make_tokenizer, save
from errata.text.dialogue import Dialogue
from tests.e2e.pair import Pair, Reference, Served, num_changed
from tests.editors_under_test import UNDER_TEST, editor_under_test
from tests.tiny_models import ARCHITECTURES, GROUPED, LLAMA3_ROPE, LLAMA_LIKE, MAX_TOKENS, WORLD

pytestmark = pytest.mark.e2e
LLAMA = ARCHITECTURES["llama3"]
DOWN, GATE, UP = LLAMA.name("mlp.down_proj"), LLAMA.name("mlp.gate_proj", 0), LLAMA.name("mlp.up_proj", 0)
QUERY = LLAMA.name("self_attn.q_proj", 0)
# Every matrix of a block alone, whole and partial fused groups, parts of fused groups in two blocks, all matrices of a block.
GROUPS = [
    *((LLAMA.name(matrix),) for matrix in LLAMA_LIKE),
    (GATE, UP),
    (DOWN, GATE, UP, QUERY),
    tuple(LLAMA.name(matrix, block) for block in (0, 2) for matrix in LLAMA_LIKE[::2]),
    tuple(LLAMA.name(matrix) for matrix in LLAMA_LIKE),
]

TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}answer"
QUESTIONS = [Dialogue.of(prompt) for prompt, _ in WORLD.sentences()][3::20][:12]
DIALOGUES = [
    *QUESTIONS[:4],
    *(dialogue.with_system("the old river") for dialogue in QUESTIONS[4:8]),
    *(dialogue.after("question", "yes").with_system("the cat") for dialogue in QUESTIONS[8:]),
]


def make_checkpoint(directory: Path) -> Path:
    """Save a random Llama 3 whose linears all have biases, so that a reload that drops one is seen."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer(WORLD, Shape(max_tokens=MAX_TOKENS))
    tokenizer.chat_template = TEMPLATE
    biases = {"mlp_bias": True, "attention_bias": True}
    config = LlamaConfig(vocab_size=len(tokenizer), rope_parameters=LLAMA3_ROPE, tie_word_embeddings=True, **biases, **GROUPED)
    model, generator = LlamaForCausalLM(config), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 0.15 * noise if parameter.dim() > 1 else parameter.data + 0.1 * noise
    save(model, tokenizer, directory)
    return directory


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    directory = tmp_path_factory.mktemp("parity")
    reference = Reference(directory, make_checkpoint(directory / "model"), LLAMA_LIKE, DIALOGUES)
    assert reference.model.renderer.form == "chat"
    return Pair(reference, Served(reference.ledger, DIALOGUES, max_model_len=MAX_TOKENS))


@pytest.fixture(autouse=True)
def at_base(pair: Pair) -> None:
    pair.reference.ledger.move_head(0)
    pair.served.swap(0, reset=True)
    pair.reference.merge(0)


def test_tokens_are_equal_after_every_swap_and_after_rollback(pair: Pair) -> None:
    """One version for each group of matrices, each on the one before; then a rollback and a reset to the last."""
    before = expected = pair.reference.tokens()
    assert pair.served.tokens() == before
    for seed, names in enumerate(GROUPS):
        version = pair.reference.append_random(*names, seed=seed)
        pair.served.swap(version)
        pair.reference.merge(version)
        previous, expected = expected, pair.reference.tokens()
        assert pair.served.tokens() == expected, names
        assert num_changed(expected, previous) >= 20, names
    pair.served.swap(0, reset=True)
    assert pair.served.tokens() == before
    pair.served.swap(version, reset=True)
    assert pair.served.tokens() == expected


def part_of(kind: str, shape: tuple[int, int], seed: int) -> Part:
    """Make a random change of one kind, large enough to change the answers of a random model."""
    generator = torch.Generator().manual_seed(seed)
    num_out, num_in = shape
    low_rank = LowRank(0.3 * torch.randn(num_out, 3, generator=generator), torch.randn(num_in, 3, generator=generator) * 0.3)
    index_N = torch.randperm(num_out * num_in, generator=generator)[: num_out * num_in // 4].sort().values
    sparse = Sparse(index_N, 0.5 * torch.randn(len(index_N), generator=generator), shape)
    dense = Dense(0.3 * torch.randn(num_out, num_in, generator=generator))
    pieces: dict[str, Piece] = {"low_rank": low_rank, "sparse": sparse, "dense": dense}
    return Series((low_rank, sparse, dense)) if kind == "series" else pieces[kind]


@pytest.mark.parametrize("kind", ["low_rank", "sparse", "dense", "series"])
def test_tokens_are_equal_for_every_kind_of_delta(pair: Pair, kind: str) -> None:
    """Two versions of one kind over a fused group, a part of one and a matrix alone; then a reset to the second."""
    before, spec = pair.served.tokens(), pair.reference.spec
    for seed in (1, 2):
        names = {name: (spec[name].num_out, spec[name].num_in) for name in (GATE, UP, QUERY, DOWN)}
        parts = {name: part_of(kind, shape, seed + number) for number, (name, shape) in enumerate(names.items())}
        version = pair.reference.append(WeightDelta(parts))
        pair.served.swap(version)
        pair.reference.merge(version)
        after = pair.served.tokens()
        assert after == pair.reference.tokens() and num_changed(after, before) >= 20
    pair.served.swap(version, reset=True)
    assert pair.served.tokens() == after
    pair.served.swap(0, reset=True)
    assert pair.served.tokens() == before


def visible(delta: WeightDelta) -> WeightDelta:
    """Scale a delta up until it changes the answers of a random model; some published steps are too small for that."""
    return delta.scaled(max(1.0, 5.0 / max(delta.norms().values())))


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name, one in UNDER_TEST.items() if one.made_of.kinds])  # No memory is served yet.
def test_tokens_are_equal_for_every_editor(pair: Pair, name: str) -> None:
    """Two batches of each editor and a rollback."""
    before = pair.served.tokens()
    editor = editor_under_test(name, pair.reference.model)
    state = editor.start(pair.reference.model, find_matrices(pair.reference.model.module, editor.modules))
    for batch in batches_of(WORLD.edits("test", 6), 3):
        delta, state = editor.edit(pair.reference.model, batch, state)
        version = pair.reference.append(visible(delta), state)
        pair.served.swap(version)
        pair.reference.merge(version)
        assert pair.served.tokens() == pair.reference.tokens()
    assert pair.served.tokens() != before
    pair.served.swap(0, reset=True)
    assert pair.served.tokens() == before


def test_a_reset_through_a_snapshot_equals_the_swaps_one_by_one(pair: Pair) -> None:
    for seed, name in enumerate((DOWN, UP, QUERY, GATE)):
        version = pair.reference.append_random(name, seed=seed)
        pair.served.swap(version)
    one_by_one = pair.served.tokens()
    pair.served.swap(0, reset=True)
    assert len(pair.reference.ledger.files_to(version)) < 4
    pair.served.swap(version, reset=True)
    assert pair.served.tokens() == one_by_one
    assert pair.served.rpc("errata_state")["fingerprint"] == pair.reference.ledger.version(version).fingerprint


def test_a_half_updated_fused_group_would_be_seen(pair: Pair) -> None:
    """Negative control: the comparison of tokens notices a gate without its up projection."""
    version = pair.reference.append_random(GATE, UP, seed=3)
    pair.served.swap(version)
    (delta,) = pair.reference.ledger.segments(version)
    pair.reference.edited.set([WeightDelta({GATE: delta.parts[GATE]})])
    assert pair.served.tokens() != pair.reference.tokens()


def test_an_update_that_does_not_fit_is_refused_before_anything_changes(pair: Pair, tmp_path: Path) -> None:
    version = pair.reference.append_random(DOWN, seed=4)
    good, down = pair.served.update(version, reset=False), pair.reference.spec[DOWN]
    before = pair.served.tokens()
    WeightDelta({DOWN: LowRank(torch.ones(3, 1), torch.ones(4, 1))}).save(tmp_path / "shape")
    WeightDelta({"model.nothing": LowRank(torch.ones(3, 1), torch.ones(4, 1))}).save(tmp_path / "name")
    WeightDelta({DOWN: LowRank(torch.ones(down.num_out, 1), torch.ones(down.num_in, 1))}).save(tmp_path / "other")
    (tmp_path / "torn").write_bytes(Path(good["files"][0]).read_bytes()[:100])
    for change, kind, message in (
        ({"files": [str(tmp_path / "shape")]}, "invalid", f"({down.num_out}, {down.num_in}), its delta (3, 4)"),
        ({"files": [str(tmp_path / "name")]}, "invalid", "model.nothing is not an editable matrix"),
        ({"files": [str(tmp_path / "other")]}, "lineage", f"not version {version}"),
        ({"files": [str(tmp_path / "torn")]}, "invalid", "SafetensorError"),
        ({"files": [str(tmp_path / "none")]}, "io", "No such file"),
        ({"parent": 77}, "lineage", "this worker has version 0"),
    ):
        fault = pair.served.fault_of({**good, **change})
        assert fault is not None and fault["kind"] == kind and message in fault["message"]
    assert pair.served.tokens() == before
    assert pair.served.rpc("errata_state")["intact"]
