"""SWEA with OS: the input embeddings of a subject are changed wherever its tokens stand in a prompt.

Paper: SWEA (arXiv 2401.17809), subject word embedding altering; OS: optimising, then suppressing.
Equations: optimise: delta = argmin mean -log p(target | E + delta) + kl_weight KL("{s} is") + norm_weight |delta| / |E|^2,
from delta = E, over the prompt and the prompt after other texts; suppress: e = delta - suppression * mask * E, where mask marks
the dimensions whose integrated gradient of P(old answer) is above `attributed` of the largest. The subject's tokens get E + e.
Deviations: the KL is to the unchanged model (published: to the doubled embedding of the first step); the old answer is the
model's own, in as many tokens as the target has; every subject of a prompt is changed, not one alone; the texts before a prompt
are generated greedily; a dialogue has other dialogues around it. A subject is also matched as it is tokenised at the beginning
of a text and after a blank, if it has as many tokens there.
Facts of one subject share an offset, so that a new one is searched together with the earlier ones; no other question about the
subject is kept apart from them, which is the method's known limit.
Remembers: the texts before prompts. Rows and facts are in the memory of the model. m tokens of a subject, D dimensions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from errata.delta.memory_delta import MemoryDelta
from errata.edit import Code, Edit, EditBatch, EditRejected
from errata.edit_memory.bank import Bank, Kind, Record
from errata.edit_memory.hooks import bank_of, reading
from errata.editors.editor import Editor, check_batch, check_modules
from errata.editors.memory_based.memory_editor import input_layer
from errata.editors.memory_based.subject_offsets import (
    OffsetSearch,
    SubjectText,
    SubjectTexts,
    attributions,
    embeddings_of,
    searched,
)
from errata.editors.state import EditorState
from errata.model.generation import continuations, greedy_texts
from errata.model.language_model import LanguageModel
from errata.model.matrices import ModelSpec
from errata.model.prefix_cache import BatchCache
from errata.text.dialogue import Prompt, in_contexts
from errata.text.rules import fact_of, subject_span
from errata.timing import timed

PREFIXES = "prefixes"  # in the state, as bytes of JSON
PREFIX_TOKENS = 10
SUBJECTS_AT_ONCE = 16


Key = tuple[str, int]


class SubjectPrompt(NamedTuple):
    """A prompt of an edit as tokens, with its answer, and where the subject's tokens are; `name` is the edit's in refusals."""

    edit: Edit
    name: int | str
    prompt: Prompt
    answer: str
    given: list[int]
    answer_ids: list[int]
    at: int
    subject_ids: tuple[int, ...]

    @property
    def key(self) -> Key:
        """The subject and the number of its tokens: what shares these shares an offset."""
        return str(self.edit.subject), len(self.subject_ids)


@dataclass(frozen=True)
class SWEA(Editor):
    """SWEA with OS. `starters` begin the texts before prompts. With a `suppression` of 0 there is only the search."""

    modules: tuple[str, ...] = ("layers.3.mlp.down_proj",)
    _: KW_ONLY
    num_steps: int = 25
    learning_rate: float = 0.02
    kl_weight: float = 0.2
    norm_weight: float = 0.3
    max_norm: float = 1.0
    suppression: float = 0.5
    attributed: float = 0.35
    starters: tuple[str, ...] = ("The", "Therefore", "Because", "I", "You")
    max_batch: int = 100

    writes: ClassVar[Literal["weights", "memory"]] = "memory"
    kind: ClassVar[Kind] = "rows"

    def __post_init__(self) -> None:
        if not 0 <= self.suppression <= 1 or not 0 <= self.attributed <= 1:
            given = f"{self.suppression:g} and {self.attributed:g}"
            raise ValueError(f"suppression and attributed are shares, from 0 to 1, not {given}")

    def start(self, model: LanguageModel, spec: ModelSpec) -> EditorState:
        check_modules(self.modules, model, spec)
        begun = list(self.starters)
        made = greedy_texts(model, begun, min(PREFIX_TOKENS, model.max_tokens // 4)) if begun else []
        prefixes = [f"{start}{text}".strip().rstrip(".") + ". " for start, text in zip(begun, made, strict=True)]
        encoded = torch.frombuffer(bytearray(json.dumps(prefixes).encode()), dtype=torch.uint8)
        return EditorState(0, {PREFIXES: encoded})

    @torch.no_grad()
    def edit(
        self, model: LanguageModel, batch: EditBatch, state: EditorState, cache: BatchCache | None = None
    ) -> tuple[MemoryDelta, EditorState]:
        check_batch(batch, self.max_batch)
        site, held = input_layer(model), bank_of(model.module) or ()
        prefixes: list[str] = json.loads(state.tensors[PREFIXES].cpu().numpy().tobytes())
        with reading(model.module, Bank("rows", site)):
            own = [located(model, batch.edits[row.edit], row.prompt, row.answer, row.edit) for row in batch.rows]
            names = {one.edit.subject for one in own}
            earlier = [one for record in held if record.subject in names for one in _held(model, record)]
            facts = {fact_of(one.prompt) for one in own}
            every = [*(one for one in earlier if fact_of(one.prompt) not in facts), *own]
            changes = self._changes(model, {one.key: [o for o in every if o.key == one.key] for one in own}, prefixes)
            records = tuple(_record(model, one, changes[one.key], state.num_edits) for one in own)
        return MemoryDelta("rows", site, records), replace(state, num_edits=state.num_edits + len(batch))

    def _changes(
        self, model: LanguageModel, groups: Mapping[Key, Sequence[SubjectPrompt]], prefixes: Sequence[str]
    ) -> dict[Key, tuple[Tensor, Tensor]]:
        """Return each subject's offset, and the share that each dimension of its embeddings loses, both [m, D]."""
        keys, found = list(groups), dict[Key, tuple[Tensor, Tensor]]()
        for begin in range(0, len(keys), SUBJECTS_AT_ONCE):
            part = keys[begin : begin + SUBJECTS_AT_ONCE]
            offsets = self._offsets(model, [groups[key] for key in part], prefixes)
            shares = [self._suppressed(model, groups[key], offset) for key, offset in zip(part, offsets, strict=True)]
            found |= dict(zip(part, zip(offsets, shares, strict=True), strict=True))
        return found

    @timed("search")
    def _offsets(
        self, model: LanguageModel, groups: Sequence[Sequence[SubjectPrompt]], prefixes: Sequence[str]
    ) -> list[Tensor]:
        """Search the offsets of subjects, [m, D] each. Raises `EditRejected` for one that is not finite."""
        subjects = [group[-1].subject_ids for group in groups]
        texts = [_texts(model, group, prefixes) for group in groups]
        embedding_ND = torch.cat([embeddings_of(model, ids) for ids in subjects])
        search = OffsetSearch(self.num_steps, self.learning_rate, self.kl_weight, self.norm_weight, self.max_norm)
        offset_ND, loss_G = searched(SubjectTexts(model, texts, subjects), embedding_ND, search)
        offsets = list(offset_ND.split([len(ids) for ids in subjects]))
        for group, loss, offset_mD in zip(groups, loss_G, offsets, strict=True):
            if not bool(torch.isfinite(loss) & torch.isfinite(offset_mD).all()):
                why = "the offset of the subject or its loss is not finite"
                raise EditRejected(why, edit=group[-1].name, code=Code.NOT_FINITE)
        return offsets

    def _suppressed(self, model: LanguageModel, group: Sequence[SubjectPrompt], offset_mD: Tensor) -> Tensor:
        """Return the share that each dimension of the subject's embeddings loses, [m, D]."""
        found_mD = torch.zeros_like(offset_mD)
        if not self.suppression:
            return found_mD
        old = continuations(model, [(one.given, len(one.answer_ids)) for one in group])
        for one, said in zip(group, old, strict=True):
            if said and said != one.answer_ids[: len(said)]:
                share_mD = attributions(model, one.given, said, one.at, len(one.subject_ids))
                found_mD[share_mD > self.attributed * share_mD.max()] = self.suppression
        return found_mD


def located(model: LanguageModel, edit: Edit, prompt: Prompt, answer: str, index: int = 0) -> SubjectPrompt:
    """Find the tokens of an edit's subject in a prompt. Raises `EditRejected` for an edit without a subject."""
    if edit.subject is None:
        why = "this method changes the embeddings of the subject, and the edit has none: name it"
        raise EditRejected(why, edit=edit.id or index, field="subject", code=Code.MISSING_FIELD)
    span = subject_span(edit.prompt, edit.subject)
    assert span is not None  # `Edit.faults` finds a subject that is not in the prompt.
    begin = len(prompt) - len(edit.prompt) if isinstance(prompt, str) else model.renderer.question_at(prompt)
    first, last = (model.renderer.token_at(prompt, begin + place) for place in (span[0], span[1] - 1))
    given, answer_ids = model.renderer.rows([(prompt, answer)])[0]
    subject_ids = tuple(given[first : last + 1])
    return SubjectPrompt(edit, edit.id or index, prompt, answer, given, answer_ids, first, subject_ids)


def _held(model: LanguageModel, record: Record) -> Iterator[SubjectPrompt]:
    """Locate the subject of a record in its prompt, if it is there as it was."""
    if subject_span(record.question, record.subject) is None:
        return
    prompt = record.prompt
    before = () if isinstance(prompt, str) else prompt.before
    edit = Edit(record.question, record.answer, record.subject, form="chat" if record.in_chat else "completion", before=before)
    yield located(model, edit, edit.prompts[-1], record.answer)


def _texts(model: LanguageModel, group: Sequence[SubjectPrompt], prefixes: Sequence[str]) -> list[SubjectText]:
    """Return the texts on which one subject's offset is searched: prompts, prompts in contexts, and the anchor."""
    subject, ids, found = str(group[0].edit.subject), group[0].subject_ids, list[SubjectText]()
    for one in group:
        found.append(SubjectText((one.given, one.answer_ids), one.at))
        around: list[Prompt] = [prefix + one.prompt for prefix in prefixes if isinstance(one.prompt, str)]
        if not isinstance(one.prompt, str):
            around = list(in_contexts(one.prompt, len(prefixes) + 1, offset=len(one.edit.prompt))[1:])
        for prompt in around:
            other = located(model, one.edit, prompt, one.answer)
            fits = len(other.given) + len(other.answer_ids) <= model.max_tokens
            if fits and len(other.subject_ids) == len(ids):
                found.append(SubjectText((other.given, other.answer_ids), other.at))
    anchor = located(model, Edit(f"{subject} is", ".", subject), f"{subject} is", ".")
    if len(anchor.subject_ids) == len(ids):
        found.append(SubjectText((anchor.given, anchor.given[-1:]), anchor.at, is_anchor=True))
    return found


def _record(model: LanguageModel, one: SubjectPrompt, change: tuple[Tensor, Tensor], number: int) -> Record:
    """Make the record of a prompt's fact: a pattern for each way in which the subject is tokenised in as many tokens."""
    offset_mD, lost_mD = change
    tokenizer, length = model.renderer.tokenizer, len(one.subject_ids)
    spelled = [tokenizer(f"{blank}{one.edit.subject}", add_special_tokens=False)["input_ids"] for blank in ("", " ")]
    patterns = [p for p in dict.fromkeys((one.subject_ids, *map(tuple, spelled))) if len(p) == length]
    embeddings = [embeddings_of(model, pattern) for pattern in patterns]
    device = offset_mD.device
    rows = {
        "id": torch.tensor([token for pattern in patterns for token in pattern], device=device),
        "embedding": torch.cat([(1 - lost_mD) * embedding_mD + offset_mD for embedding_mD in embeddings]),
        "begins": torch.tensor([int(i == 0) for _ in patterns for i in range(length)], device=device),
        "number": torch.full((len(patterns) * length,), number, device=device),
    }
    text = f"{one.edit.subject}: {one.prompt} -> {one.answer}"
    return Record(fact_of(one.prompt), text, rows, str(one.edit.subject), one.edit.id or "", one.answer)
