"""ELDER: a mixture of LoRA experts that all edits share, mixed only where a state has the discrete code of an edit.

Paper: ELDER (arXiv 2408.11869). Equations: at a matrix W, s = softmax(W_r x + b), and the change of W v is the sum of
s_i U_i D_i v over the k experts with the largest s_i; all routers read the same x, the input of one module. Loss of a batch:
mean -log p(answers) + guidance * mean over tokens of the sum over matrices and over i in c(y) of -log s_i, where c(y) are
k experts that are drawn for each answer y. The experts are mixed where the code of x differs from an edit's in at most tau
bits, and elsewhere the model is unedited.
Deviations: the code is that of random hyperplanes through the mean of the probes' states (SimHash). In the paper it is which
experts the routers choose: 24 bits, of which two random codes of 100 are closer than its tau of 12, and which change while the
routers are trained. tau is calibrated on the probes, as the threshold of `state`. Each token of an answer has a code of its own
and is decided by itself, from its own x; the paper decides once, at the prompt's last token, for all tokens, which needs a pass
of its own before each prompt. x is the input of the first of the matrices. Each batch also repeats `rehearsed` earlier edits,
because experts that are shared forget; the paper has no such term.
Remembers: tau and the mean. Codes and experts are in the memory. T answer tokens, X in-features, E experts, C bits.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from errata.delta.memory_delta import MemoryDelta
from errata.edit import Code, EditBatch, EditRejected, Row
from errata.edit_memory.bank import Bank, Kind, Record
from errata.edit_memory.experts import Experts, ExpertsPlace, Mixture, distances, experts_of, packed, shared_of, signs
from errata.edit_memory.hooks import bank_of, reading
from errata.editors.editor import check_batch, check_modules
from errata.editors.memory_based.memory_editor import MemoryEditor, check_inputs, inputs_at_answers, probe_states
from errata.editors.state import EditorState
from errata.model.devices import device_of
from errata.model.encoding import answer_log_probs, answer_nll
from errata.model.language_model import LanguageModel
from errata.model.matrices import ModelSpec, find_matrices
from errata.model.packing import packed_requests
from errata.model.prefix_cache import BatchCache, PrefixCache
from errata.text.dialogue import Dialogue
from errata.text.rules import fact_of
from errata.timing import timed

RADII, CENTRE = "radii", "centre"  # in the state: tau of completions and of questions in chat; the mean
NEAREST_ANGLE = 0.1  # in radians, which cosine 0.995 is: rounding might otherwise keep a record from its own prompt


@dataclass(frozen=True)
class ELDER(MemoryEditor):
    """ELDER. `modules` are the matrices with experts, whose first one is read; with a `radius` above 0, tau is that."""

    modules: tuple[str, ...] = ("layers.3.mlp.down_proj",)
    _: KW_ONLY
    num_experts: int = 4
    num_chosen: int = 2
    rank: int = 8
    guidance: float = 1e-2
    num_bits: int = 256
    num_steps: int = 50
    learning_rate: float = 1e-2
    loss_floor: float = 1e-2
    rehearsed: int = 30
    max_false: float = 0.01
    radius: int = 0
    max_batch: int = 100
    seed: int = 0

    kind: ClassVar[Kind] = "experts"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.num_chosen <= self.num_experts:
            raise ValueError(f"num_chosen is a number of the {self.num_experts} experts, not {self.num_chosen}")
        if self.num_bits < 8 or self.num_bits % 8:
            raise ValueError(f"num_bits is that of whole bytes, at least 8, not {self.num_bits}")

    def start(self, model: LanguageModel, spec: ModelSpec) -> EditorState:
        check_modules(self.modules, model, spec)
        site, forms = spec.names[0], (False, True) if model.renderer.form == "chat" else (False, False)
        states = {in_chat: probe_states(model, site, in_chat) for in_chat in dict.fromkeys(forms)}
        own_MX = states[forms[1]][0]
        centre_X = own_MX.mean(0) if len(own_MX) else torch.zeros(spec[site].num_in)
        radii = [float(self.radius) or self._calibrated(*states[in_chat], centre_X) for in_chat in forms]
        return EditorState(0, {RADII: torch.tensor(radii), CENTRE: centre_X})

    def _calibrated(self, question_MX: Tensor, other_TX: Tensor, centre_X: Tensor) -> float:
        """Return the bits in which all but `max_false` of the probe questions differ from every other probe, less one."""
        nearest = NEAREST_ANGLE / math.pi * self.num_bits
        if len(question_MX) < 2:
            return float(int(nearest))
        sign_MC = signs(question_MX, centre_X, self.num_bits)
        apart_MN = distances(sign_MC, sign_MC).fill_diagonal_(self.num_bits)
        if len(other_TX):
            apart_MN = torch.cat([apart_MN, distances(sign_MC, signs(other_TX, centre_X, self.num_bits))], dim=1)
        return float(int(max(nearest, float(apart_MN.amin(1).quantile(self.max_false)) - 1)))

    def edit(
        self, model: LanguageModel, batch: EditBatch, state: EditorState, cache: BatchCache | None = None
    ) -> tuple[MemoryDelta, EditorState]:
        check_batch(batch, self.max_batch)
        names, held = find_matrices(model.module, self.modules).names, bank_of(model.module)
        earlier = self._rehearsed(batch, held, state.num_edits)
        with reading(model.module, Bank("experts", names[0])):
            if cache is None or earlier:
                texts = packed_requests(model, [*batch.rows, *earlier])
                cache = BatchCache(texts, PrefixCache(model.module, names))
            tokens = cache.tokens
            with cache.prefix.reusing(tokens):
                input_TX, nll_T = inputs_at_answers(model, tokens, names[0])
            check_inputs(batch, tokens, input_TX, nll_T)
            first = self._first(model, names) if held is None else experts_of(held.shared)
            trained = self._trained(model, first, cache, input_TX, [row.answer for row in (*batch.rows, *earlier)])
        centre_X = state.tensors[CENTRE].to(input_TX.device)
        codes = packed(signs(input_TX, centre_X, self.num_bits)).split(tokens.answer_lengths)
        records = []
        for row, code_tB in zip(batch.rows, codes, strict=False):  # Those of the earlier edits follow.
            radius = float(state.tensors[RADII][int(isinstance(row.prompt, Dialogue))])
            rows = {"code": code_tB, "radius": torch.full((len(code_tB),), radius, device=code_tB.device)}
            edit, text = batch.edits[row.edit], f"{row.prompt} -> {row.answer}"
            records.append(Record(fact_of(row.prompt), text, rows, edit.subject or "", edit.id or "", row.answer))
        shared = shared_of(trained, centre_X, self.num_chosen)
        delta = MemoryDelta("experts", names[0], tuple(records), (), shared)
        return delta, replace(state, num_edits=state.num_edits + len(batch))

    def _first(self, model: LanguageModel, names: Sequence[str]) -> dict[str, Experts]:
        """Return experts that change nothing yet, and routers, as torch initialises them."""
        spec, found = find_matrices(model.module, names), dict[str, Experts]()
        generator = torch.Generator().manual_seed(self.seed)
        num_x, num_e = spec[names[0]].num_in, self.num_experts

        def drawn(num_in: int, *shape: int) -> Tensor:
            return (2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(num_in)

        for one in spec.matrices:
            down_ERI, router_EX = drawn(one.num_in, num_e, self.rank, one.num_in), drawn(num_x, num_e, num_x)
            up_EOR = torch.zeros(num_e, one.num_out, self.rank)
            found[one.name] = Experts(down_ERI, up_EOR, router_EX, torch.zeros(num_e))
        return found

    def _rehearsed(self, batch: EditBatch, held: Bank | None, number: int) -> list[Row]:
        """Draw the prompts of earlier edits, other than those of the batch."""
        own = {fact_of(row.prompt) for row in batch.rows}
        others = sorted((record for record in held or () if record.fact not in own), key=lambda record: record.fact)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        order = torch.randperm(len(others), generator=generator)[: self.rehearsed].tolist()
        return [Row(0, others[i].prompt, others[i].answer) for i in order]

    @timed("solve")
    def _trained(
        self, model: LanguageModel, first: Mapping[str, Experts], cache: BatchCache, input_TX: Tensor, answers: Sequence[str]
    ) -> dict[str, Experts]:
        """Return the experts after the descent on the answers. Raises `EditRejected` for a loss that is not finite."""
        tokens, experts = cache.tokens, _parameters(model, first)
        optimizer = torch.optim.Adam([tensor for one in experts.values() for tensor in one], lr=self.learning_rate)
        codes = {name: self._codes(name, answers, tokens.answer_lengths).to(input_TX.device) for name in experts}
        at = [(ExpertsPlace(model.module.get_submodule(name)), one) for name, one in experts.items()]
        mixture = Mixture(at[0][0].module, at, self.num_chosen, lambda _: tokens.predicts_T)
        try:
            for _ in range(self.num_steps):
                with torch.enable_grad(), cache.prefix.reusing(tokens):
                    nll_T = answer_nll(answer_log_probs(model.module, tokens), tokens)
                    guides = [_guidance(one, input_TX, codes[name]) for name, one in experts.items()]
                    loss = nll_T.mean() + self.guidance * torch.stack(guides).sum(0).mean().to(nll_T.device)
                if not torch.isfinite(loss):
                    why = "the loss on the batch is not finite: lower learning_rate"
                    raise EditRejected(why, field="edits", code=Code.NOT_FINITE)
                if float(nll_T.detach().max()) < self.loss_floor:
                    break
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        finally:
            mixture.remove()
        return {name: Experts(*(tensor.detach() for tensor in one)) for name, one in experts.items()}

    def _codes(self, name: str, answers: Sequence[str], lengths: Sequence[int]) -> Tensor:
        """Draw the experts of a matrix for each answer; return 1 for these and 0 for the others, at each token, [T, E]."""
        rows = []
        for answer in answers:
            digest = hashlib.sha256(f"{self.seed} {name} {answer}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            chosen_k = torch.randperm(self.num_experts, generator=generator)[: self.num_chosen]
            rows.append(torch.zeros(self.num_experts).index_fill(0, chosen_k, 1.0))
        return torch.stack(rows).repeat_interleave(torch.tensor(lengths), dim=0)


def _parameters(model: LanguageModel, experts: Mapping[str, Experts]) -> dict[str, Experts]:
    """Return copies of experts beside their matrices, to be trained."""
    return {
        name: Experts(*(tensor.detach().to(device_of(model.module, name), copy=True).requires_grad_() for tensor in one))
        for name, one in experts.items()
    }


def _guidance(experts: Experts, input_TX: Tensor, code_TE: Tensor) -> Tensor:
    """Return the sum of -log s over the experts that are drawn for each token, [T]."""
    share_TE = experts.shares(input_TX.to(experts.bias_E.device)).to(input_TX.device)
    return -(share_TE.log() * code_TE).sum(1)
