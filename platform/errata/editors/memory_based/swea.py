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
Remembers: the edits, as JSON, and the texts before prompts. The rows are in the memory. m tokens of a subject, D dimensions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from errata.delta.memory_delta import MemoryDelta
from errata.edit import Code, Edit, EditBatch, EditRejected
from errata.edit_memory.bank import Bank, Record
from errata.edit_memory.hooks import reading
from errata.editors.editor import check_batch, check_modules
from errata.editors.memory_based.memory_editor import MemoryEditor, input_layer
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
from errata.text.rules import fact_of, is_blank, subject_span
from errata.timing import timed

EDITS, PREFIXES = "edits", "prefixes"  # in the state, as bytes of JSON
PREFIX_TOKENS = 10
SUBJECTS_AT_ONCE = 16


class Located(NamedTuple):
    """A prompt of an edit as tokens, with its answer, and where the subject's tokens stand."""

    edit: Edit
    prompt: Prompt
    answer: str
    given: list[int]
    answer_ids: list[int]
    at: int
    subject_ids: tuple[int, ...]


@dataclass(frozen=True)
class SWEA(MemoryEditor):
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
    max_false: float = 0.01
    max_batch: int = 100

    def start(self, model: LanguageModel, spec: ModelSpec) -> EditorState:
        check_modules(self.modules, model, spec)
        begun = list(self.starters)
        made = greedy_texts(model, begun, min(PREFIX_TOKENS, model.max_tokens // 4)) if begun else []
        prefixes = [f"{start}{text}".strip().rstrip(".") + ". " for start, text in zip(begun, made, strict=True)]
        return EditorState(0, {EDITS: torch.empty(0, dtype=torch.uint8), PREFIXES: _as_bytes(prefixes)})

    @torch.no_grad()
    def edit(
        self, model: LanguageModel, batch: EditBatch, state: EditorState, cache: BatchCache | None = None
    ) -> tuple[MemoryDelta, EditorState]:
        check_batch(batch, self.max_batch)
        site = input_layer(model)
        known = known_edits(state)
        prefixes: list[str] = json.loads(_text(state.tensors[PREFIXES]))
        with reading(model.module, Bank("rows", site)):
            own = [located(model, batch.edits[row.edit], row.prompt, row.answer, row.edit) for row in batch.rows]
            subjects = dict.fromkeys((one.edit.subject, len(one.subject_ids)) for one in own)
            groups = [self._group(model, batch, known.get(str(name), ()), (str(name), length)) for name, length in subjects]
            changes: list[Tensor] = []
            for begin in range(0, len(groups), SUBJECTS_AT_ONCE):
                changes += self._changes(model, groups[begin : begin + SUBJECTS_AT_ONCE], prefixes)
            change_of = dict(zip(subjects, changes, strict=True))
            records = [
                _record(model, one, change_of[one.edit.subject, len(one.subject_ids)], state.num_edits + i)
                for i, one in enumerate(own)
            ]
        lines = "".join(json.dumps(edit.to_json()) + "\n" for edit in batch)
        after = state.grown(len(batch), {EDITS: _bytes_of(lines)}, {EDITS: _with_edits(known, batch)})
        return MemoryDelta("rows", site, tuple(records)), after

    def _group(self, model: LanguageModel, batch: EditBatch, known: Iterable[Edit], subject: tuple[str, int]) -> list[Located]:
        """Locate a subject, of so many tokens, in all its edits: the earlier ones that hold, and those of the batch."""
        name, length = subject
        again = {key for edit in batch for key in edit.keys}
        edits = [*(edit for edit in known if again.isdisjoint(edit.keys)), *(edit for edit in batch if edit.subject == name)]
        asked = [(edit, prompt) for edit in edits for prompt in edit.prompts]
        found = [located(model, edit, prompt, edit.wording(prompt), edit.id or 0) for edit, prompt in asked]
        return [one for one in found if len(one.subject_ids) == length]

    @timed("search")
    def _changes(self, model: LanguageModel, groups: Sequence[Sequence[Located]], prefixes: Sequence[str]) -> list[Tensor]:
        """Return the change of each subject's embeddings, as the offset and the mask of suppressed dimensions, [2, m, D]."""
        subjects = [group[0].subject_ids for group in groups]
        texts = [_texts(model, group, prefixes) for group in groups]
        embedding_ND = torch.cat([embeddings_of(model, ids) for ids in subjects])
        search = OffsetSearch(self.num_steps, self.learning_rate, self.kl_weight, self.norm_weight, self.max_norm)
        offset_ND, loss_G = searched(SubjectTexts(model, texts, subjects), embedding_ND, search)
        finite_N = torch.isfinite(offset_ND).all(1).split([len(ids) for ids in subjects])
        for group, loss, finite_m in zip(groups, loss_G.tolist(), finite_N, strict=True):
            if not (abs(loss) < float("inf") and bool(finite_m.all())):
                edit = group[-1].edit.id or 0
                raise EditRejected("the offset of the subject or its loss is not finite", edit=edit, code=Code.NOT_FINITE)
        offsets = offset_ND.split([len(ids) for ids in subjects])
        return [
            torch.stack([offset_mD, self._suppressed(model, group, offset_mD)])
            for group, offset_mD in zip(groups, offsets, strict=True)
        ]

    def _suppressed(self, model: LanguageModel, group: Sequence[Located], offset_mD: Tensor) -> Tensor:
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


def located(model: LanguageModel, edit: Edit, prompt: Prompt, answer: str, name: int | str) -> Located:
    """Find the tokens of an edit's subject in a prompt. Raises `EditRejected` for an edit without a subject."""
    if edit.subject is None:
        why = "this method changes the embeddings of the subject, and the edit has none: name it"
        raise EditRejected(why, edit=edit.id or name, field="subject", code=Code.MISSING_FIELD)
    span = subject_span(edit.prompt, edit.subject)
    assert span is not None  # `Edit.faults` finds a subject that is not in the prompt.
    begin = len(prompt) - len(edit.prompt) if isinstance(prompt, str) else model.renderer.question_at(prompt)
    first, last = (model.renderer.token_at(prompt, begin + place) for place in (span[0], span[1] - 1))
    given, answer_ids = model.renderer.rows([(prompt, answer)])[0]
    return Located(edit, prompt, answer, given, answer_ids, first, tuple(given[first : last + 1]))


def _texts(model: LanguageModel, group: Sequence[Located], prefixes: Sequence[str]) -> list[SubjectText]:
    """Return the texts on which one subject's offset is searched: prompts, prompts in contexts, and the anchor."""
    subject, ids, found = str(group[0].edit.subject), group[0].subject_ids, list[SubjectText]()
    for one in group:
        found.append(SubjectText((one.given, one.answer_ids), one.at))
        around: list[Prompt] = [prefix + one.prompt for prefix in prefixes if isinstance(one.prompt, str)]
        if not isinstance(one.prompt, str):
            around = list(in_contexts(one.prompt, len(prefixes) + 1, offset=len(one.edit.prompt))[1:])
        for prompt in around:
            other = located(model, one.edit, prompt, one.answer, 0)
            fits = len(other.given) + len(other.answer_ids) <= model.max_tokens
            if fits and len(other.subject_ids) == len(ids):
                found.append(SubjectText((other.given, other.answer_ids), other.at))
    anchor = located(model, Edit(f"{subject} is", ".", subject), f"{subject} is", ".", 0)
    if len(anchor.subject_ids) == len(ids):
        found.append(SubjectText((anchor.given, anchor.given[-1:]), anchor.at, is_anchor=True))
    return found


def _record(model: LanguageModel, one: Located, change_2mD: Tensor, number: int) -> Record:
    """Make the record of a prompt's fact: a pattern for each way in which the subject is tokenised in as many tokens."""
    offset_mD, lost_mD = change_2mD
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
    return Record(fact_of(one.prompt), f"{one.edit.subject}: {one.prompt} -> {one.answer}", rows)


def known_edits(state: EditorState) -> Mapping[str, tuple[Edit, ...]]:
    """Return the edits that hold, by subject."""
    if EDITS in state.derived:
        found: Mapping[str, tuple[Edit, ...]] = state.derived[EDITS]
        return found
    lines = _text(state.tensors[EDITS]).splitlines()
    return _with_edits({}, (Edit.from_json(json.loads(line)) for line in lines))


def _with_edits(known: Mapping[str, tuple[Edit, ...]], edits: Iterable[Edit]) -> dict[str, tuple[Edit, ...]]:
    """Return the edits by subject with more of them, each in the place of those that it corrects."""
    found = dict(known)
    for edit in edits:
        if edit.subject is not None and not is_blank(edit.subject):
            held = found.get(edit.subject, ())
            found[edit.subject] = (*(one for one in held if edit.keys.isdisjoint(one.keys)), edit)
    return found


def _as_bytes(value: object) -> Tensor:
    return _bytes_of(json.dumps(value))


def _bytes_of(text: str) -> Tensor:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def _text(tensor: Tensor) -> str:
    return tensor.cpu().numpy().tobytes().decode()
