"""vLLM with a version swapped in says, token for token, what transformers says with the same version merged."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from errata.delta import EditedModel, LowRank, WeightDelta
from errata.edit import batches_of
from errata.editors.editor import EditorState
from errata.ledger import Ledger
from errata.model import find_matrices, load
from tests.e2e.toy import WORLD, make_checkpoint
from tests.editors_under_test import UNDER_TEST

pytestmark = pytest.mark.e2e
DOWN, GATE, UP = "model.layers.1.mlp.down_proj", "model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"
QUERY = "model.layers.0.self_attn.q_proj"
NAMES = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", QUERY]
NUM_TOKENS = 12
PROMPTS = [prompt for prompt, _ in WORLD.sentences()][::7][:30]


class Pair:
    """One engine and one transformers model, over one ledger."""

    def __init__(self, directory: Path) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        from vllm import LLM

        checkpoint = make_checkpoint(directory / "model")
        self.model = load(checkpoint)
        self.spec = find_matrices(self.model.module, NAMES)
        self.edited = EditedModel(self.model.module, self.spec)
        base = {"model": str(checkpoint), "fingerprint": "base", "matrices": list(self.spec.names)}
        self.ledger = Ledger.create(directory / "ledger", base, snapshot_every=3)
        self.engine = LLM(
            model=str(checkpoint),
            dtype="float32",
            enforce_eager=True,
            max_num_seqs=32,
            enable_prefix_caching=False,
            weight_transfer_config={"backend": "errata"},
            worker_extension_cls="serving.weight_engine.WorkerExtension",
        )
        self.rpc("init_weight_transfer_engine", init_info=base)
        self.served = 0

    def rpc(self, method: str, **arguments: Any) -> Any:
        return self.engine.collective_rpc(method, kwargs=arguments)[0]

    def update(self, version: int, reset: bool) -> dict[str, Any]:
        entry = self.ledger.version(version)
        files = self.ledger.files_to(version) if reset else [entry.directory / "delta.safetensors"]
        common = {"parent": self.served, "version": version, "fingerprint": entry.fingerprint}
        return {**common, "reset": reset, "files": [str(file) for file in files]}

    def swap(self, version: int, reset: bool = False) -> None:
        update = self.update(version, reset)
        assert self.rpc("errata_prepare", update_info=update) is None
        self.rpc("start_weight_update")
        self.rpc("update_weights", update_info=update)
        self.rpc("finish_weight_update")
        self.served = version

    def append(self, *names: str, seed: int = 0) -> int:
        generator = torch.Generator().manual_seed(seed)

        def noise(size: int) -> torch.Tensor:
            return torch.randn(size, 3, generator=generator) * 0.3

        return self.written(
            WeightDelta({n: LowRank(noise(self.spec[n].num_out), noise(self.spec[n].num_in)) for n in names}), EditorState()
        )

    def written(self, delta: WeightDelta, state: EditorState) -> int:
        """The version that a change makes."""
        return self.ledger.append(self.ledger.head, delta, state, [], {}, "an editor", "test").number

    def merge(self, version: int) -> None:
        self.edited.set(self.ledger.segments(version))

    def vllm_tokens(self) -> list[list[int]]:
        from vllm import SamplingParams

        sampling = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
        return [list(out.outputs[0].token_ids) for out in self.engine.generate(PROMPTS, sampling, use_tqdm=False)]

    def hf_tokens(self) -> list[list[int]]:
        rows = []
        for prompt in PROMPTS:
            ids = self.model.tokenizer(prompt, return_tensors="pt")["input_ids"]
            out = self.model.module.generate(ids, max_new_tokens=NUM_TOKENS, do_sample=False, pad_token_id=0, eos_token_id=None)
            rows.append(out[0, ids.shape[1] :].tolist())
        return rows


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("parity"))


@pytest.fixture(autouse=True)
def at_base(pair: Pair) -> None:
    pair.ledger.move_head(0)
    pair.swap(0, reset=True)
    pair.merge(0)


@pytest.mark.parametrize("names", [(DOWN,), (GATE, UP), (UP,), (QUERY,), (DOWN, GATE, UP, QUERY)])
def test_tokens_equal_after_every_swap_and_after_rollback(pair: Pair, names: tuple[str, ...]) -> None:
    before = pair.vllm_tokens()
    assert before == pair.hf_tokens()
    for seed in (1, 2):
        version = pair.append(*names, seed=seed)
        pair.swap(version)
        pair.merge(version)
        after = pair.vllm_tokens()
        assert after == pair.hf_tokens()
        assert sum(a != b for a, b in zip(after, before, strict=True)) >= 20
    pair.swap(0, reset=True)
    assert pair.vllm_tokens() == before


def visible(delta: WeightDelta) -> WeightDelta:
    """Some published steps are too small to change a word of a random model: these are made larger, of the same kind."""
    return delta.scaled(max(1.0, 5.0 / max(delta.norms().values())))


@pytest.mark.parametrize("name", UNDER_TEST)
def test_what_an_editor_writes_is_what_is_served(pair: Pair, name: str) -> None:
    """Two batches of each editor, and back: vLLM and transformers agree, and something has changed."""
    before = pair.vllm_tokens()
    editor = UNDER_TEST[name](pair.model)
    state = editor.start(pair.model, find_matrices(pair.model.module, editor.modules))
    for batch in batches_of(WORLD.edits("test", 6), 3):
        delta, state = editor.edit(pair.model, batch, state)
        version = pair.written(visible(delta), state)
        pair.swap(version)
        pair.merge(version)
        assert pair.vllm_tokens() == pair.hf_tokens()
    assert pair.vllm_tokens() != before
    pair.swap(0, reset=True)
    assert pair.vllm_tokens() == before


def test_a_reset_through_a_snapshot_equals_the_swaps_one_by_one(pair: Pair) -> None:
    for seed, name in enumerate((DOWN, UP, QUERY, GATE)):
        version = pair.append(name, seed=seed)
        pair.swap(version)
    one_by_one = pair.vllm_tokens()
    pair.swap(0, reset=True)
    assert len(pair.ledger.files_to(version)) < 4
    pair.swap(version, reset=True)
    assert pair.vllm_tokens() == one_by_one
    assert pair.rpc("errata_state")["fingerprint"] == pair.ledger.version(version).fingerprint


def test_a_half_updated_fused_group_would_be_seen(pair: Pair) -> None:
    """The negative control: the comparison above notices gate without up."""
    version = pair.append(GATE, UP, seed=3)
    pair.swap(version)
    (delta,) = pair.ledger.segments(version)
    pair.edited.set([WeightDelta({GATE: delta.parts[GATE]})])
    assert pair.vllm_tokens() != pair.hf_tokens()


def test_what_does_not_fit_is_refused_before_anything_is_touched(pair: Pair, tmp_path: Path) -> None:
    version = pair.append(DOWN, seed=4)
    good = pair.update(version, reset=False)
    before = pair.vllm_tokens()
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
        assert said in pair.rpc("errata_prepare", update_info={**good, **change})
    assert pair.vllm_tokens() == before
    assert pair.rpc("errata_state")["intact"]
