"""Arguments of `errata bench`: editors from names or folders, the stream from files."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from errata.benchmark.run import BenchmarkedEditor, settings_of
from errata.benchmark.stream import CHECKPOINTS, BenchmarkStream
from errata.datasets.reader import read_edits
from errata.editors import EDITORS, Editor, load_artifact, make_editor, name_of
from errata.model.devices import first_device
from errata.model.language_model import LanguageModel, load
from errata.overrides import overridden


def benchmarked_editors(editors: Sequence[str], settings: Sequence[str], device: str) -> list[BenchmarkedEditor]:
    """Make editors from folders of trained ones and from `NAME`, `NAME=ARTIFACT` or `NAME:PRESET=ARTIFACT`.

    `settings` are `EDITOR.field=value`. Two trained editors of one class are named after their folders. Raises `ValueError`
    for an unknown editor, field or value.
    """
    found = [_found(editor, str(first_device(device))) for editor in editors]
    counts = Counter(name_of(editor) for editor, _, _ in found)
    names = [name_of(editor) if counts[name_of(editor)] == 1 else label for editor, _, label in found]
    if len(set(names)) < len(names):
        raise ValueError(f"an editor is given twice: {', '.join(editors)}; each may be given once")
    changed = _changed(dict(zip(names, (editor for editor, _, _ in found), strict=True)), settings)
    return [
        BenchmarkedEditor(name, changed[name], record.get("train_s") if record else 0.0, settings_of(changed[name]))
        for name, (_, record, _) in zip(names, found, strict=True)
    ]


def _found(editor: str, device: str) -> tuple[Editor, dict[str, Any], str]:
    """Return the editor, the record of its training, and a label to tell it from others of its class."""
    if Path(editor).is_dir():
        return *load_artifact(editor, device), Path(editor).name
    named, _, artifact = editor.partition("=")
    name, _, preset = named.partition(":")
    if name.partition("/")[0] not in EDITORS:
        raise ValueError(f"{editor!r} is neither a folder nor an editor; editors are {', '.join(EDITORS)}")
    return make_editor(name, artifact or None, preset or None, None, device), {}, named


def _changed(editors: dict[str, Editor], settings: Sequence[str]) -> dict[str, Editor]:
    """Apply `EDITOR.field=value` settings to editors by name."""
    for setting in settings:
        path, sign, value = setting.partition("=")
        name, _, field = path.partition(".")
        if not sign or not field:
            raise ValueError(f"settings are written EDITOR.field=value, not {setting!r}")
        if name not in editors:
            raise ValueError(f"{setting}: no editor here is named {name!r}; editors are {', '.join(editors)}")
        if editors[name].is_trained:
            raise ValueError(f"{setting}: {name} was trained with its settings; train another one with jobs/train.py")
        editors = editors | {name: overridden(editors[name], field, value)}
    return editors


def stream_of(edits: Path, text: Path, batch_size: int, checkpoints: str, limit: int, seed: int) -> BenchmarkStream:
    """Read the stream from a file of edits and a file of plain sentences; a `seed` other than 0 shuffles the edits.

    Raises `ValueError` or `FileNotFoundError` for a file or number that cannot be used.
    """
    stops = checkpoints.split(",") if checkpoints else []
    if not all(stop.strip().isdecimal() for stop in stops):
        raise ValueError(f"checkpoints are numbers of edits separated by commas, not {checkpoints!r}")
    chosen = list(read_edits(edits))
    if seed:
        random.Random(seed).shuffle(chosen)
    try:
        sentences = [line.strip() for line in text.read_text(encoding="utf-8").splitlines() if len(line.split()) > 1]
    except UnicodeDecodeError as wrong:
        raise ValueError(f"{text} is not UTF-8 text: {wrong.reason} at byte {wrong.start}") from None
    if not chosen or not sentences:
        raise ValueError(f"{text if chosen else edits} has no {'sentence of two words or more' if chosen else 'edit'}")
    stream = BenchmarkStream(tuple(chosen[: limit or None]), tuple(sentences), batch_size, seed=seed)
    return replace(stream, checkpoints=tuple(int(stop) for stop in stops) or CHECKPOINTS)


def asked_also(stream: BenchmarkStream, transformations: str) -> BenchmarkStream:
    """Return the stream with transformations, given with commas. Raises `ValueError` for one that does not exist."""
    return replace(stream, transformations=tuple(name.strip() for name in transformations.split(",") if name.strip()))


def check_dtype(dtype: str) -> None:
    """Raise `ValueError` for an unknown dtype."""
    if not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ValueError(f"{dtype!r} is not a dtype of torch; use float32, bfloat16 or float16")


def model_of(model: str, dtype: str, device: str) -> LanguageModel:
    """Load the model; raises `ValueError` for an unknown dtype."""
    check_dtype(dtype)
    return load(model, getattr(torch, dtype), device)
