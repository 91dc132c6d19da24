"""The page about a benchmark's folder: rows.parquet, report.json and, where it is there, answers.parquet."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from errata.benchmark.results import COLUMNS, KINDS, Answer, CheckpointScores
from errata.benchmark.summary import EditorSummary, summarise
from errata.benchmark.tables import as_text
from errata.reports.benchmark_answers import FILE, counts, failures, kept_answers, pairs, read_table
from errata.reports.benchmark_figures import TITLES, curve_picture, pair_picture, series_of, trade_picture
from errata.reports.page import Cell, Line, Page, Section, Table, capped

MOST_FAILURES = 50  # of one editor
LEAST_IS_BEST = {"edit_ms", "precompute_s", "train_s", "peak_bytes", "rejected", "norm_growth"}
NONE_IS_BEST = {"fluency"}  # a text may be too even and too odd


def benchmark_page(directory: str | Path) -> Page:
    """Raises `ValueError` naming the file that is damaged, or has no rows."""
    directory = Path(directory)
    rows, meta, answers = read_rows(directory / "rows.parquet"), read_meta(directory / "report.json"), kept_answers(directory)
    editors = list(dict.fromkeys(row.editor for row in rows))
    found = ranked(summarise(rows))
    sections = [_comparison(found, editors), _curves(rows, editors), _time(found, editors), _norms(rows, editors)]
    sections += [_failures(answers, found, editors), _pairs(answers, found), _settings(meta), _how(meta)]
    title = f"Benchmark report: {meta['suite']}" if meta.get("suite") else "Benchmark report"
    return Page(title, str(directory), _facts(rows, meta, found), sections, series_of(editors))


def read_rows(path: Path) -> list[CheckpointScores]:
    """Raises `ValueError` if the file is damaged, lacks a column or has no rows."""
    rows = [CheckpointScores.from_json(record) for record in read_table(path, CheckpointScores).to_pylist()]
    if not rows:
        raise ValueError(f"{path} has no rows: the benchmark wrote none yet")
    return rows


def read_meta(path: Path) -> dict[str, Any]:
    """What report.json says beside the rows; nothing if it is not there."""
    if not path.exists():
        return {}
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as wrong:
        raise ValueError(f"{path} cannot be read, it may be damaged: {wrong}") from None
    if not isinstance(meta, dict):
        raise ValueError(f"{path} is not a benchmark's report: it holds a {type(meta).__name__}, not an object")
    return meta


def ranked(found: Sequence[EditorSummary]) -> list[EditorSummary]:
    """The unedited model first, then by the harmonic mean."""

    def key(one: EditorSummary) -> float:
        spread = one.spreads["harmonic_mean"]
        return math.inf if spread is None else -spread.mean

    return [*found[:1], *sorted(found[1:], key=key)]


def _facts(rows: Sequence[CheckpointScores], meta: Mapping[str, Any], found: Sequence[EditorSummary]) -> list[tuple[str, str]]:
    seeds = sorted({row.seed for row in rows})
    facts = [("editors", str(len(found) - 1)), ("edits", f"{max(row.edits for row in rows):,}")]
    facts += [("seeds", ", ".join(map(str, seeds)))]
    if len(found) > 1 and (best := found[1].spreads["harmonic_mean"]):
        facts.append(("best harmonic mean", f"{found[1].editor}, {best.mean:.3f}"))
    hardware = meta.get("hardware") or {}
    if hardware:
        machine = hardware.get("gpu") or hardware.get("cpu") or "unknown"
        facts.append(("machine", f"{machine}, {hardware.get('num_cores', '?')} cores"))
    if meta.get("batch_size"):
        facts.append(("edits in a batch", str(meta["batch_size"])))
    if meta.get("seconds"):
        facts.append(("took", f"{meta['seconds'] / 60:.0f} minutes"))
    return facts


def _comparison(found: Sequence[EditorSummary], editors: Sequence[str]) -> Section:
    names = [name for name in COLUMNS if any(one.spreads[name] is not None for one in found)]
    last = max(one.edits for one in found)
    best = {name: _best(name, [one for one in found[1:] if one.edits == last]) for name in names}
    cells = [_cells(one, names, best if place else dict.fromkeys(names)) for place, one in enumerate(found)]
    lines = [Line((o.editor, str(o.edits), *own), editors.index(o.editor)) for o, own in zip(found, cells, strict=True)]
    columns = ("editor", "edits", *(COLUMNS[name] for name in names))
    text = "All edits so far are scored at the last checkpoint; tf is teacher-forced, everything else is by free generation. "
    text += "Bold is the best of a column: the largest share, the perplexity nearest to the unedited model's, the least time, "
    text += "memory and norm. "
    if len(found[0].seeds) > 1:
        text += "A cell is the mean over the seeds; small, the smallest and the largest."
    elif any(spread and spread.interval for one in found for spread in one.spreads.values()):
        text += "Small is the 95 % bootstrap interval over the edits."
    table = Table("Standings at the last checkpoint, by the harmonic mean", columns, lines)
    return Section("standings", "Who is ahead", text.strip(), tables=[table], has_legend=True)


def _cells(one: EditorSummary, names: Sequence[str], best: Mapping[str, float | None]) -> Iterator[Cell]:
    for name in names:
        spread = one.spreads[name]
        if spread is None:
            yield Cell("–")
            continue
        low, high = (as_text(name, end) for end in spread.interval or (spread.min, spread.max))
        text = as_text(name, spread.mean)
        is_best = best[name] is not None and text == as_text(name, best[name] or 0.0)
        yield Cell(text, "" if low == high == text else f"{low}–{high}", strong=is_best)


def _best(name: str, found: Sequence[EditorSummary]) -> float | None:
    """The value to put in bold; None where nothing is better than another."""
    values = [spread.mean for one in found if (spread := one.spreads[name]) is not None and math.isfinite(spread.mean)]
    if name in NONE_IS_BEST or len({as_text(name, value) for value in values}) < 2:
        return None
    if name.startswith("ppl_ratio"):
        return min(values, key=lambda value: abs(math.log(value)) if value > 0 else math.inf)
    return min(values) if name in LEAST_IS_BEST else max(values)


def _curves(rows: Sequence[CheckpointScores], editors: Sequence[str]) -> Section:
    pictures = [picture for name, title in TITLES.items() if (picture := curve_picture(rows, name, title, editors))]
    num_seeds = len({row.seed for row in rows})
    text = "Shares of all edits so far, by free generation. "
    if num_seeds > 1:
        text += f"A line is the mean over {num_seeds} seeds. "
    if any(row.intervals for row in rows):
        of_all = "the smallest low to the largest high of the seeds' " if num_seeds > 1 else "the "
        text += f"A band is {of_all}95 % bootstrap intervals over the edits; a score without one has the seeds' range."
    elif num_seeds > 1:
        text += "A band goes from the smallest to the largest of the seeds."
    return Section("curves", "Scores over the edits", text.strip(), pictures, has_legend=True)


def _time(found: Sequence[EditorSummary], editors: Sequence[str]) -> Section:
    picture = trade_picture(found, editors)
    text = (
        "Mean time of one edit over the stream, without training and measuring moments, against the harmonic mean at the end."
    )
    return Section("time", "Time against quality", text if picture else "No editor was timed.", [picture] if picture else [])


def _norms(rows: Sequence[CheckpointScores], editors: Sequence[str]) -> Section:
    titles = {"norm_growth": "|W| / |W0|", "delta_norm": "|W − W0| / |W0|"}
    pictures = [picture for name, title in titles.items() if (picture := curve_picture(rows, name, title, editors))]
    text = "Frobenius norms of the matrix where they are largest; W0 is the unedited model's."
    return Section("norms", "Norm growth", text, pictures, has_legend=True)


def _failures(answers: Sequence[Answer], found: Sequence[EditorSummary], editors: Sequence[str]) -> Section:
    title = "What failed"
    if not answers:
        return Section("failures", title, f"This benchmark wrote no {FILE}: which questions failed is not known.")
    counted = counts(answers)
    kinds = [kind for kind in KINDS if any(kind == asked for _, asked in counted)]
    there = [one.editor for one in found if any(one.editor == editor for editor, _ in counted)]
    lines = [
        Line((editor, *(_share(counted.get((editor, kind))) for kind in kinds)), editors.index(editor)) for editor in there
    ]
    tables = [Table("Questions not answered as wanted, of those asked, at the last checkpoint", ("editor", *kinds), lines)]
    tables += [_failed(editor, failures(answers, editor)) for editor in there[1:]]
    text = (
        "At the last checkpoint, by free generation. What is wanted is the target, for locality what the unedited model says."
    )
    return Section("failures", title, text, tables=tables, can_be_searched=True)


def _share(count: tuple[int, int] | None) -> Cell:
    return Cell("–") if count is None else Cell(f"{count[0]:,}", f"of {count[1]:,}")


def _failed(editor: str, wrong: Sequence[Answer]) -> Table:
    lines = [Line((one.prompt, one.kind, one.wanted, one.answer or "(nothing)", str(one.seed))) for one in wrong]
    shown, note = capped(lines, MOST_FAILURES, "failures")
    columns = ("prompt", "kind", "wanted", "the model says", "seed")
    caption = f"What {editor} says instead"
    return Table(caption, columns, shown, num_text=5, note=note, folded=f"{editor}: {len(wrong):,} failed")


def _pairs(answers: Sequence[Answer], found: Sequence[EditorSummary]) -> Section:
    title, asked = "Two editors, question by question", {answer.editor for answer in answers}
    editors = [one.editor for one in found[1:] if one.editor in asked]
    if len(editors) < 2:
        return Section("pairs", title, f"This needs the answers of two editors, in {FILE}.")
    pictures, tables = [], []
    for kind in KINDS:
        compared = pairs(answers, kind, editors)
        if not compared:
            continue
        if kind == "efficacy" and (picture := pair_picture(compared, kind)):
            pictures.append(picture)
        lines = [
            Line((p.first, p.second, *map(str, (p.both, p.only_first, p.only_second, p.neither)), f"{p.p_value:.2g}"))
            for p in compared
        ]
        columns = ("A", "B", "both right", "only A", "only B", "neither", "p")
        folded = f"{kind}: {len(lines)} pairs"
        tables.append(
            Table(f"Right answers, {kind}", columns, lines, 2, folded=folded, is_open=kind == "efficacy" and len(lines) < 30)
        )
    text = "Of the questions that both were asked, in all seeds. The figure is of the edits themselves; p is McNemar's exact "
    text += "test, not corrected for the number of pairs."
    return Section("pairs", title, text, pictures, tables, can_be_searched=True)


def _settings(meta: Mapping[str, Any]) -> Section:
    settings = meta.get("settings") or {}
    tables = [
        Table(
            f"Settings of {editor}",
            ("setting", "value"),
            [Line((name, value)) for name, value in _flat(own)],
            num_text=2,
            folded=editor,
        )
        for editor, own in settings.items()
    ]
    text = "The fields of each editor as it ran." if tables else "The report names no settings."
    return Section("settings", "Settings", text, tables=tables)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """`reward.discount`, `0.9`."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        yield name, ", ".join(map(str, value)) or "–"
    else:
        yield name, "–" if value is None else str(value)


def _how(meta: Mapping[str, Any]) -> Section:
    known = {
        name: meta[name] for name in ("command", "corpus", "shape", "num_validation", "budget", "hardware") if name in meta
    }
    lines = [Line((name, value)) for name, value in _flat(known)]
    tables = [Table("What report.json says of the run", ("what", "value"), lines, num_text=2)] if lines else []
    text = str(meta.get("note") or "") or ("" if lines else "There is no report.json beside the rows.")
    return Section("how", "How it was run", text, tables=tables)
