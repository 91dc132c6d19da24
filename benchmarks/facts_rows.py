"""Rows of the comparison on the default model: each editor by name, its candidate settings, and what it has seen beforehand.

What a user posts is the same for all. Settings are chosen on training facts, by as many trials for each editor that has some to
choose; `NUM_TRIALS` is that budget. None of these settings was chosen on a test fact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from errata.durable import new_folder
from errata.edit import Edit, batches_of
from errata.editors import EDITORS, load_artifact
from errata.editors.closed_form.alphaedit import AlphaEdit
from errata.editors.closed_form.memit import MEMIT
from errata.editors.closed_form.moments import Moments
from errata.editors.closed_form.targets import Search
from errata.editors.editor import Editor
from errata.editors.fine_tuning.ftl import FTL
from errata.editors.fine_tuning.lora import LoRA
from errata.editors.hypernet.rledit import RLEdit
from errata.editors.memory_based.answer import AnswerMemory
from errata.home import home
from errata.model.key_moments import key_sums
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from errata.testbed import smollm2
from errata.testbed.corpus import texts_of
from errata.testbed.world_facts import WorldFacts, implied_edits
from jobs import plans
from jobs.demo_run import BATCH_SIZE
from jobs.training_data import encoded_lines

UNEDITED, ORACLE = "unedited", "oracle"
NUM_TRIALS = 3
NUM_FIRST_EDITS = 100  # on which the scales of a policy without training are set
LATE = tuple(f"layers.{block}.mlp.down_proj" for block in (17, 19, 21, 23))  # the shipped policy's
EARLY = tuple(f"layers.{block}.mlp.down_proj" for block in (4, 5, 6, 7, 8))  # as published for a model of 32 blocks
NOTHING, TEXTS = "nothing", f"{smollm2.NUM_TEXTS} texts about training facts and plain sentences"

Make = Callable[[LanguageModel], Editor]


def as_composed(edits: Sequence[Edit]) -> list[Edit]:
    return list(edits)


def bare(edits: Sequence[Edit]) -> list[Edit]:
    """Return the edits with the bare target as the whole answer."""
    return [replace(edit, answer=edit.target) for edit in edits]


def with_implied(edits: Sequence[Edit]) -> list[Edit]:
    """Return the edits, each followed by what the corpus's rules say that it implies."""
    return [made for edit in edits for made in (edit, *implied_edits(edit))]


@dataclass(frozen=True)
class EditorRow:
    """A row: `makes` are its candidate settings, none for a row that edits nothing; `changed` is what becomes of the edits.

    `trials` counts settings that were compared beforehand. `missing` says why the row cannot be made.
    """

    name: str
    makes: tuple[Make, ...] = ()
    information: str = NOTHING
    trials: int = 0
    changed: Callable[[Sequence[Edit]], list[Edit]] = field(default=as_composed, compare=False)
    missing: str = ""


def rows_of(names: Sequence[str], artifacts: Mapping[str, str], policy: str = "") -> list[EditorRow]:
    """Return rows by name, in this order. Raises `ValueError` for a name that no row has."""
    known: dict[str, EditorRow] = {row.name: row for row in (*_plain(), *_trained(artifacts), *_parts(policy))}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no row is named {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in names]


def shipped(_model: LanguageModel) -> RLEdit:
    return RLEdit.load(smollm2.policy())


def _shipped_trials() -> int:
    """Return how many settings were compared before the policy was shipped; its record has each of them."""
    validation = smollm2.record()["validation"]
    assert isinstance(validation, Mapping)
    return len(validation) - 1  # The first one is the unedited model.


def _plain() -> list[EditorRow]:
    """Return the rows that need no artifact but the shipped policy."""
    found = [
        EditorRow(UNEDITED),
        EditorRow(ORACLE, information="which correction each question is about"),
        EditorRow("RLEdit", (shipped,), f"{TEXTS}; scales of {NUM_FIRST_EDITS} training facts", _shipped_trials()),
        EditorRow("AlphaEdit", tuple(_with_moments(editor) for editor in _alphaedits()), TEXTS),
        EditorRow("MEMIT", tuple(_with_moments(editor) for editor in _memits()), TEXTS),
        EditorRow("FT-L", _fixed(*_ftls())),
        EditorRow("LoRA", _fixed(LoRA(LATE, num_epochs=20), LoRA(LATE[1:2], num_epochs=20), LoRA(EARLY, num_epochs=20))),
    ]
    probes = "the probes beside the model (training facts)"
    fields: dict[str, tuple[dict[str, Any], ...]] = {
        "SCR": ({},),
        "IKE": ({},),
        "answer": ({},),
        "ELDER": tuple({"modules": (f"layers.{block}.mlp.down_proj",)} for block in (29, 21)),
        "SWEA": ({}, {"learning_rate": 0.1, "max_norm": 3.0}, {"suppression": 0.0}),
        "RTD": ({}, {"max_false": 0.1}, {"share": 0.8}),
        "state": tuple({"modules": (f"layers.{block}.mlp.down_proj",)} for block in (21, 15, 29)),
    }
    for name, settings in fields.items():
        kind: Any = EDITORS.get(name)
        missing = "" if kind else "this release has no editor of that name"
        makes = () if kind is None else _fixed(*(kind(**each) for each in settings))
        found.append(EditorRow(name, makes, probes, missing=missing))
    return found


def _trained(artifacts: Mapping[str, str]) -> list[EditorRow]:
    """Return the rows of trained memories, whose artifacts are given by name."""
    found = []
    for name in ("SERAC", "RECIPE"):
        folder = artifacts.get(name)
        missing = "" if folder else f"its artifact is not given: train one, and --artifact {name}=FOLDER"
        makes = (lambda _model, folder=folder: load_artifact(folder)[0],) if folder else ()  # type: ignore[misc]
        found.append(EditorRow(name, makes, f"training facts, {Path(folder or '').name}", missing=missing))
    return found


def _parts(policy: str) -> list[EditorRow]:
    """Return RLEdit with one part changed at a time, and with another policy."""

    def row(name: str, make: Make, changed: Callable[[Sequence[Edit]], list[Edit]] = as_composed) -> EditorRow:
        return EditorRow(name, (make,), TEXTS, changed=changed)

    other = replace(
        row("other policy", lambda _model: RLEdit.load(policy)), missing="" if policy else "it is not given: --policy FOLDER"
    )
    return [
        other,
        row("bare targets", shipped, bare),
        row("RLEdit + implied", shipped, with_implied),
        replace(row("answer + implied", lambda _model: AnswerMemory(), with_implied), information=NOTHING),
        row("one pass", lambda model: replace(shipped(model), num_passes=1)),
        row("without memory", lambda model: replace(shipped(model), memory=0.0)),
        replace(row("without metric", without_metric), information=f"scales of {NUM_FIRST_EDITS} training facts"),
    ]


def _fixed(*editors: Editor) -> tuple[Make, ...]:
    return tuple(lambda _model, editor=editor: editor for editor in editors)  # type: ignore[misc]


def _with_moments(editor: AlphaEdit | MEMIT) -> Make:
    return lambda model: editor.with_moments(moments(model))


# Contexts are other dialogues of the same question; each costs as much as the question itself.
_CLOSED: dict[str, Any] = {
    "context_words": (),
    "search": Search(num_steps=20, learning_rate=0.5, decay=1e-3, clamp=4.0, kl_weight=0.0625, loss_floor=0.05),
}
_PLACES: tuple[dict[str, Any], ...] = (
    {"modules": EARLY, "position": "subject"},
    {"modules": LATE, "position": "prompt"},
    {"modules": LATE[:1], "position": "subject"},
)


def _ftls() -> list[FTL]:
    middle, early = ("layers.20.mlp.down_proj",), ("layers.12.mlp.down_proj",)
    small: dict[str, Any] = {"epsilon": 1e-3, "learning_rate": 1e-3}
    return [FTL(middle, epsilon=1e-2), FTL(middle, **small), FTL(early, **small)]


def _memits() -> list[MEMIT]:
    return [MEMIT(**_CLOSED, **place, moment_weight=1000.0, floor=1e-2, memory=1.0) for place in _PLACES]


def _alphaedits() -> list[AlphaEdit]:
    return [AlphaEdit(**_CLOSED, **place, ridge=1.0, threshold=1e-4, relative=True) for place in _PLACES]


def moments(model: LanguageModel) -> Moments:
    """Return the second moments of keys at all tokens of the texts of the shipped policy's preconditioner; measured once."""
    folder = home() / "moments" / f"{smollm2.NAME}-{WorldFacts().name}-{smollm2.NUM_TEXTS}"
    if not folder.exists():
        names = find_matrices(model.module, (*EARLY, *LATE)).names
        texts = encoded_lines(plans.smollm2(), model, texts_of(WorldFacts(), "train", smollm2.NUM_TEXTS, seed=0))
        sums, num_tokens = key_sums(model.module, texts, names, all_tokens=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(folder) as made:
            Moments({n: total / num_tokens for n, total in sums.items()}, {"text": TEXTS, "num_tokens": num_tokens}).save(made)
    return Moments.load(folder)


def without_metric(model: LanguageModel) -> RLEdit:
    """Initialise the shipped settings without a key preconditioner, and with scales of their own."""
    editor = plans.smollm2().editor
    first = list(batches_of(WorldFacts().edits("train", NUM_FIRST_EDITS), BATCH_SIZE))
    assert isinstance(editor, RLEdit)
    return replace(editor, metric_strength=0.0).initialised(model, [], first, seed=0)
