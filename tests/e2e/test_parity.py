"""vLLM with a version swapped in says, token for token, what transformers says with the same version merged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from errata.delta.parts import LowRank
from errata.delta.weight_delta import WeightDelta
from errata.edit import batches_of
from errata.model.matrices import find_matrices
from tests.e2e.pair import Pair, Reference, Served, num_changed
from tests.e2e.toy import WORLD, make_checkpoint
from tests.editors_under_test import UNDER_TEST

pytestmark = pytest.mark.e2e
DOWN, GATE, UP = "model.layers.1.mlp.down_proj", "model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"
QUERY = "model.layers.0.self_attn.q_proj"
NAMES = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", QUERY]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    directory = tmp_path_factory.mktemp("parity")
    reference = Reference(directory, make_checkpoint(directory / "model"), NAMES)
    return Pair(reference, Served(reference.ledger))


@pytest.fixture(autouse=True)
def at_base(pair: Pair) -> None:
    pair.reference.ledger.move_head(0)
    pair.served.swap(0, reset=True)
    pair.reference.merge(0)


@pytest.mark.parametrize("names", [(DOWN,), (GATE, UP), (UP,), (QUERY,), (DOWN, GATE, UP, QUERY)])
def test_tokens_equal_after_every_swap_and_after_rollback(pair: Pair, names: tuple[str, ...]) -> None:
    before = pair.served.tokens()
    assert before == pair.reference.tokens()
    for seed in (1, 2):
        version = pair.reference.append(*names, seed=seed)
        pair.served.swap(version)
        pair.reference.merge(version)
        after = pair.served.tokens()
        assert after == pair.reference.tokens()
        assert num_changed(after, before) >= 20
    pair.served.swap(0, reset=True)
    assert pair.served.tokens() == before


def visible(delta: WeightDelta) -> WeightDelta:
    """Some published steps are too small to change a word of a random model: these are made larger, of the same kind."""
    return delta.scaled(max(1.0, 5.0 / max(delta.norms().values())))


@pytest.mark.parametrize("name", UNDER_TEST)
def test_what_an_editor_writes_is_what_is_served(pair: Pair, name: str) -> None:
    """Two batches of each editor, and back: vLLM and transformers agree, and something has changed."""
    before = pair.served.tokens()
    editor = UNDER_TEST[name](pair.reference.model)
    state = editor.start(pair.reference.model, find_matrices(pair.reference.model.module, editor.modules))
    for batch in batches_of(WORLD.edits("test", 6), 3):
        delta, state = editor.edit(pair.reference.model, batch, state)
        version = pair.reference.written(visible(delta), state)
        pair.served.swap(version)
        pair.reference.merge(version)
        assert pair.served.tokens() == pair.reference.tokens()
    assert pair.served.tokens() != before
    pair.served.swap(0, reset=True)
    assert pair.served.tokens() == before


def test_a_reset_through_a_snapshot_equals_the_swaps_one_by_one(pair: Pair) -> None:
    for seed, name in enumerate((DOWN, UP, QUERY, GATE)):
        version = pair.reference.append(name, seed=seed)
        pair.served.swap(version)
    one_by_one = pair.served.tokens()
    pair.served.swap(0, reset=True)
    assert len(pair.reference.ledger.files_to(version)) < 4
    pair.served.swap(version, reset=True)
    assert pair.served.tokens() == one_by_one
    assert pair.served.rpc("errata_state")["fingerprint"] == pair.reference.ledger.version(version).fingerprint


def test_a_half_updated_fused_group_would_be_seen(pair: Pair) -> None:
    """The negative control: the comparison above notices gate without up."""
    version = pair.reference.append(GATE, UP, seed=3)
    pair.served.swap(version)
    (delta,) = pair.reference.ledger.segments(version)
    pair.reference.edited.set([WeightDelta({GATE: delta.parts[GATE]})])
    assert pair.served.tokens() != pair.reference.tokens()


def test_what_does_not_fit_is_refused_before_anything_is_touched(pair: Pair, tmp_path: Path) -> None:
    version = pair.reference.append(DOWN, seed=4)
    good = pair.served.update(version, reset=False)
    before = pair.served.tokens()
    WeightDelta({DOWN: LowRank(torch.ones(3, 1), torch.ones(4, 1))}).save(tmp_path / "shape")
    WeightDelta({"model.nothing": LowRank(torch.ones(3, 1), torch.ones(4, 1))}).save(tmp_path / "name")
    WeightDelta({DOWN: LowRank(torch.ones(128, 1), torch.ones(256, 1))}).save(tmp_path / "other")
    (tmp_path / "torn").write_bytes(Path(good["files"][0]).read_bytes()[:100])
    for change, said in (
        ({"files": [str(tmp_path / "shape")]}, "(128, 256), its delta (3, 4)"),
        ({"files": [str(tmp_path / "name")]}, "model.nothing is not an editable matrix"),
        ({"files": [str(tmp_path / "other")]}, f"not version {version}"),
        ({"files": [str(tmp_path / "torn")]}, "SafetensorError"),
        ({"files": [str(tmp_path / "none")]}, "No such file"),
        ({"parent": 77}, "this worker has version 0"),
    ):
        assert said in pair.served.fault_of({**good, **change})["message"]
    assert pair.served.tokens() == before
    assert pair.served.rpc("errata_state")["intact"]
