"""Check of the memory count: a small model whose episode is counted without values, with values, and by Linux."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import nn

from benchmarks.measure import in_fresh_process
from benchmarks.sized_training import DEVICE, Texts, count_episode, trainer_of
from errata.editors.hypernet.reward import MemoryOptions
from errata.editors.hypernet.training import Schedule
from errata.hardware import PeakMemory
from errata.model.language_model import LanguageModel
from jobs.plan import Plan

M_MMAP_THRESHOLD = -3  # of malloc.h


@dataclass(frozen=True)
class Check:
    """A Llama with an eighth of 8B's widths and a quarter of its layers, in fp32, small enough to train with values."""

    layers: int = 8
    hidden: int = 512
    intermediate: int = 1792
    vocabulary: int = 16032
    batches: int = 4
    batch_size: int = 5
    texts: Texts = field(default_factory=Texts)

    def plan(self, plan: Plan, savings: MemoryOptions) -> Plan:
        """Scale the plan's editor to this size; it edits the last third of the layers."""
        edited = range(self.layers * 2 // 3, self.layers - 1)
        modules = tuple(f"layers.{layer}.mlp.{matrix}" for layer in edited for matrix in ("gate_proj", "up_proj"))
        editor = replace(plan.hypernetwork, modules=modules, rank=128)
        return replace(plan, editor=editor, schedule=Schedule(1, 1, self.batches, self.batch_size), savings=savings)

    def make(self, device: str) -> LanguageModel:
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=8,
            num_key_value_heads=2,
        )
        with torch.device(device):
            module: nn.Module = LlamaForCausalLM(config)
        return LanguageModel(module.eval().requires_grad_(False), None, "random")


def resident(plan: Plan, check: Check) -> int:
    """Resident bytes of an episode beyond model, policy and Adam, as Linux counts them."""
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)  # freed memory returns to the system immediately
    trainer_of(plan, check.make("cpu"), Texts(1, 1), "cpu").step()  # libraries load and compile on first use
    trainer = trainer_of(plan, check.make("cpu"), check.texts, "cpu")
    with PeakMemory() as peak:
        trainer.step()
    assert peak.num_bytes is not None, "the kernel cannot measure the peak: /proc/self/clear_refs is not writable"
    return peak.num_bytes


def check_rows(plan: Plan, check: Check, ways: Sequence[MemoryOptions]) -> list[dict[str, Any]]:
    """Compare the bytes that an episode adds: counted without values, counted with values, and resident."""
    rows = []
    for savings in ways:
        small = check.plan(plan, savings)
        without, having = (count_episode(small, check.texts, check.make, device) for device in (DEVICE, "cpu"))
        counted, resident_bytes = without.peak_bytes - without.start_bytes, in_fresh_process(resident, small, check)
        rows.append(
            {
                **asdict(savings),
                "counted_bytes": counted,
                "with_numbers_bytes": having.peak_bytes - having.start_bytes,
                "resident_bytes": resident_bytes,
                "error": counted / resident_bytes - 1,
            }
        )
    return rows
