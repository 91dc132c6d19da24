"""A transformers model and a vLLM engine over one checkpoint and ledger, whose greedy tokens must be equal."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from errata.delta.accumulator import EditedModel
from errata.delta.parts import LowRank
from errata.delta.weight_delta import WeightDelta
from errata.editors.state import EditorState
from errata.ledger import Ledger
from errata.model.language_model import load
from errata.model.matrices import find_matrices
from errata.text.dialogue import Dialogue
from tests.e2e.toy import WORLD

NUM_TOKENS = 12
PROMPTS = [prompt for prompt, _ in WORLD.sentences()][::7][:30]


class Reference:
    """The transformers model and the ledger; `matrices` are patterns of the matrices that may be edited.

    `tokens` are the answers to `PROMPTS` and, in chat, to `dialogues`.
    """

    def __init__(self, directory: Path, checkpoint: Path, matrices: Sequence[str], dialogues: Sequence[Dialogue] = ()) -> None:
        self.model, self.dialogues = load(checkpoint), dialogues
        self.spec = find_matrices(self.model.module, matrices)
        self.edited = EditedModel(self.model.module, self.spec)
        base = {"model": str(checkpoint), "fingerprint": "base", "matrices": list(self.spec.names)}
        self.ledger = Ledger.create(directory / "ledger", base, snapshot_every=3)

    def append_random(self, *names: str, seed: int = 0) -> int:
        """Append a version with random low-rank changes of these matrices."""
        generator = torch.Generator().manual_seed(seed)

        def noise(size: int) -> torch.Tensor:
            return torch.randn(size, 3, generator=generator) * 0.3

        parts = {n: LowRank(noise(self.spec[n].num_out), noise(self.spec[n].num_in)) for n in names}
        return self.append(WeightDelta(parts))

    def append(self, delta: WeightDelta, state: EditorState | None = None) -> int:
        """Append a version with this delta."""
        state = state or EditorState()
        return self.ledger.append(self.ledger.head, delta, state, [], {}, ("an editor", "test")).number

    def merge(self, version: int) -> None:
        self.edited.set(self.ledger.segments(version))

    def tokens(self) -> list[list[int]]:
        rows = []
        for prompt in (*PROMPTS, *self.dialogues):
            ids = torch.tensor([self.model.renderer.ids(prompt)])
            out = self.model.module.generate(ids, max_new_tokens=NUM_TOKENS, do_sample=False, pad_token_id=0, eos_token_id=None)
            rows.append(out[0, ids.shape[1] :].tolist())
        return rows


class Served:
    """A vLLM engine in this process over the ledger; `options` are further arguments of vLLM's `LLM`.

    `tokens` are the answers to `PROMPTS` and, in chat, as vLLM renders them, to `dialogues`.
    """

    def __init__(self, ledger: Ledger, dialogues: Sequence[Dialogue] = (), **options: Any) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        from vllm import LLM

        self.ledger, self.dialogues = ledger, [dialogue.to_json() for dialogue in dialogues]
        self.engine = LLM(
            model=ledger.base["model"],
            dtype="float32",
            enforce_eager=True,
            max_num_seqs=32,
            enable_prefix_caching=False,
            weight_transfer_config={"backend": "errata"},
            worker_extension_cls="serving.engine.weight_engine.WorkerExtension",
            **options,
        )
        base = {name: ledger.base[name] for name in ("model", "fingerprint", "matrices")}
        self.rpc("init_weight_transfer_engine", init_info=base)
        self.version = 0

    def rpc(self, method: str, **arguments: Any) -> Any:
        return self.engine.collective_rpc(method, kwargs=arguments)[0]

    def update(self, version: int, reset: bool) -> dict[str, Any]:
        entry = self.ledger.version(version)
        files = self.ledger.files_to(version) if reset else [entry.directory / "delta.safetensors"]
        common = {"parent": self.version, "version": version, "fingerprint": entry.fingerprint}
        return {**common, "reset": reset, "files": [str(file) for file in files]}

    def fault_of(self, update: dict[str, Any]) -> dict[str, Any] | None:
        """Prepare an update and return what is wrong with it, or None."""
        answer = self.rpc("errata_prepare", update_info=update)
        while not answer["is_read"]:
            answer = self.rpc("errata_reading")
        return answer["fault"]

    def swap(self, version: int, reset: bool = False) -> None:
        update = self.update(version, reset)
        fault = self.fault_of(update)
        assert fault is None, fault
        self.rpc("start_weight_update")
        self.rpc("update_weights", update_info=update)
        self.rpc("finish_weight_update")
        self.version = version

    def tokens(self) -> list[list[int]]:
        from vllm import SamplingParams

        sampling = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
        made = self.engine.generate(PROMPTS, sampling, use_tqdm=False)
        if self.dialogues:
            made += self.engine.chat(self.dialogues, sampling, use_tqdm=False)  # type: ignore[arg-type]
        return [list(out.outputs[0].token_ids) for out in made]


@dataclass(frozen=True)
class Pair:
    reference: Reference
    served: Served


def num_changed(after: Sequence[object], before: Sequence[object]) -> int:
    return sum(a != b for a, b in zip(after, before, strict=True))
