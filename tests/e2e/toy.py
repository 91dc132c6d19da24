"""A random Llama with biases, and a closed-form editor whose edits show in the answers."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from errata.delta.parts import LowRank
from errata.delta.weight_delta import WeightDelta
from errata.edit import Code, Edit, EditBatch, EditRejected
from errata.editors.editor import Editor
from errata.editors.state import EditorState
from errata.guard.probes import FILE as PROBES
from errata.guard.probes import Probes
from errata.model.language_model import LanguageModel
from errata.model.matrices import ModelSpec
from errata.model.prefix_cache import BatchCache
from errata.testbed.language_model import Shape, make_tokenizer, save
from errata.testbed.world import World

WORLD = World(20)
FACTS = WORLD.sentences()
MAX_TOKENS = 128


def make_checkpoint(directory: Path) -> Path:
    """Save a random Llama whose linears all have biases, so that a reload that drops one is seen."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer(WORLD, Shape(max_tokens=MAX_TOKENS))
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0, "tie_word_embeddings": False}
    config = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=MAX_TOKENS, mlp_bias=True, attention_bias=True, **sizes, **special
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or parameter.dim() == 2:
                parameter.normal_(0, 0.1 if name.endswith("bias") else 0.15)
    save(model, tokenizer, directory)
    Probes((), ()).save(directory / PROBES)  # It is random, so no edit can make it worse.
    return directory


@dataclass(frozen=True)
class Toy(Editor):
    """Maps the last token of the prompt to the first token of the target: `ΔW = strength w_target kᵀ / |k|²`.

    Words in a prompt make it misbehave: `violin` is refused, `piano` raises, `flute` ends the process, `harp` takes 2 s, and
    with `organ` the update is a million times as large.
    """

    modules: tuple[str, ...] = ("layers.1.mlp.down_proj",)
    strength: float = 40.0

    def start(self, model: LanguageModel, spec: ModelSpec) -> EditorState:
        return EditorState()

    @torch.no_grad()
    def edit(
        self, model: LanguageModel, batch: EditBatch, state: EditorState, cache: BatchCache | None = None
    ) -> tuple[WeightDelta, EditorState]:
        for index, edit in enumerate(batch):
            misbehave(edit.prompt, index)
        name = "model.layers.1.mlp.down_proj"
        keys, values = [], []
        for edit in batch:
            kept: list[torch.Tensor] = []
            handle = model.module.get_submodule(name).register_forward_pre_hook(
                lambda _m, args, kept=kept: kept.append(args[0])
            )
            model.module(**model.tokenizer(edit.prompt, return_tensors="pt"))
            handle.remove()
            key = kept[0][0, -1]
            target = model.tokenizer(edit.target)["input_ids"][0]
            row = model.module.lm_head.weight[target]
            keys.append(key / key.square().sum())
            values.append(self.strength * row * (1e6 if "organ" in edit.prompt.split() else 1.0))
        delta = WeightDelta({name: LowRank(torch.stack(values, 1), torch.stack(keys, 1))})
        return delta, EditorState(state.num_edits + len(batch), {"seen": torch.tensor([float(state.num_edits + len(batch))])})


def misbehave(prompt: str, index: int) -> None:
    words = prompt.split()
    if "violin" in words:
        raise EditRejected("violins are refused", edit=index, field="prompt", code=Code.EDITOR_FAILED)
    if "piano" in words:
        raise torch.linalg.LinAlgError("pianos are too heavy")
    if "flute" in words:
        os._exit(1)
    if "harp" in words:
        time.sleep(2)


@dataclass(frozen=True)
class Ending(Toy):
    """Maps the last token of the prompt to the target, and that of the target after it to the end of the answer."""

    @torch.no_grad()
    def edit(
        self, model: LanguageModel, batch: EditBatch, state: EditorState, cache: BatchCache | None = None
    ) -> tuple[WeightDelta, EditorState]:
        end = model.tokenizer.eos_token
        pairs = [(edit.prompt, edit.target) for edit in batch] + [(f"{edit.prompt} {edit.target}", end) for edit in batch]
        both = EditBatch(tuple(Edit(prompt, "x") for prompt, _ in pairs))
        made, _ = super().edit(model, both, state)
        (part,) = made.parts.values()
        assert isinstance(part, LowRank)
        ids = [model.tokenizer.convert_tokens_to_ids(model.tokenizer.tokenize(text))[0] for _, text in pairs]
        values_OR = self.strength * model.module.lm_head.weight[ids].T
        name = "model.layers.1.mlp.down_proj"
        now_OR = model.module.get_submodule(name)(part.V_IR.T / part.V_IR.T.square().sum(1, keepdim=True)).T  # type: ignore[operator]
        key_IR = torch.linalg.pinv((part.V_IR / part.V_IR.square().sum(0)).T)  # Each key alone gets its own value.
        return WeightDelta({name: LowRank(values_OR - now_OR, key_IR)}), EditorState(state.num_edits + len(batch))
