"""The report page of a benchmark, from rows.parquet and, if they exist, report.json and answers.parquet."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from errata.benchmark.results import COLUMNS, IN_TABLES, KINDS, MEASURES, REQUIRED, Answer, CheckpointScores, Measure
from errata.benchmark.summary import EditorSummary, summarise
from errata.benchmark.tables import as_text
from errata.reports.benchmark_answers import FILE, counts, failures, kept_answers, pairs, read_table
from errata.reports.benchmark_figures import curve_picture, pair_picture, series_of, trade_picture
from errata.reports.page import Cell, Line, Page, Section, Table, capped

MOST_FAILURES = 50  # shown for one editor
NORMS = {"norm_growth": "|W| / |W0|", "delta_norm": "|W − W0| / |W0|"}


def benchmark_page(directory: str | Path) -> Page:
    """Build the page. Raises `ValueError` with the file that is damaged or has no rows."""
    directory = Path(directory)
    rows, meta, answers = read_rows(directory / "rows.parquet"), read_meta(directory / "report.json"), kept_answers(directory)
    editors = list(dict.fromkeys(row.editor for row in rows))
    summaries = ranked(summarise(rows))
    sections = [_comparison(summaries, editors), _curves(rows, editors), _time(summaries, editors), _norms(rows, editors)]
    sections += [_failures(answers, summaries, editors), _pairs(answers, summaries), _settings(meta), _how(meta)]
    title = f"Benchmark report: {meta['suite']}" if meta.get("suite") else "Benchmark report"
    return Page(title, str(directory), _facts(rows, meta, summaries), sections, series_of(editors))


def read_rows(path: Path) -> list[CheckpointScores]:
    """Read rows.parquet. Raises `ValueError` if it is damaged, lacks a column or has no rows."""
    rows = [CheckpointScores.from_json(record) for record in read_table(path, COLUMNS, REQUIRED).to_pylist()]
    if not rows:
        raise ValueError(f"{path} has no rows: the benchmark has not reached its first checkpoint")
    return rows


def read_meta(path: Path) -> dict[str, Any]:
    """Read the fields of report.json; empty if the file is missing. Raises `ValueError` if it is damaged."""
    if not path.exists():
        return {}
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as wrong:
        raise ValueError(f"{path} cannot be read, it may be damaged: {wrong}") from None
    if not isinstance(meta, dict):
        raise ValueError(f"{path} is not a benchmark's report: it holds a {type(meta).__name__}, not an object")
    return meta


def ranked(summaries: Sequence[EditorSummary]) -> list[EditorSummary]:
    """Sort the editors by harmonic mean, after the unedited model."""

    def key(one: EditorSummary) -> float:
        summary = one.measures["harmonic_mean"]
        return math.inf if summary is None else -summary.mean

    return [*summaries[:1], *sorted(summaries[1:], key=key)]


def _facts(
    rows: Sequence[CheckpointScores], meta: Mapping[str, Any], summaries: Sequence[EditorSummary]
) -> list[tuple[str, str]]:
    seeds = sorted({row.seed for row in rows})
    facts = [("editors", str(len(summaries) - 1)), ("edits", f"{max(row.edits for row in rows):,}")]
    facts += [("seeds", ", ".join(map(str, seeds)))]
    if len(summaries) > 1 and (best := summaries[1].measures["harmonic_mean"]):
        facts.append(("best harmonic mean", f"{summaries[1].editor}, {best.mean:.3f}"))
    hardware = meta.get("hardware") or {}
    if hardware:
        machine = hardware.get("gpu") or hardware.get("cpu") or "unknown"
        facts.append(("machine", f"{machine}, {hardware.get('num_cores', '?')} cores"))
    if meta.get("batch_size"):
        facts.append(("edits per batch", str(meta["batch_size"])))
    if meta.get("seconds"):
        facts.append(("duration", f"{meta['seconds'] / 60:.0f} minutes"))
    return facts


def _comparison(summaries: Sequence[EditorSummary], editors: Sequence[str]) -> Section:
    measures = [measure for measure in IN_TABLES if any(one.measures[measure.name] is not None for one in summaries)]
    last = max(one.edits for one in summaries)
    best = {m.name: _best(m, [one for one in summaries[1:] if one.edits == last]) for m in measures}
    nothing = dict.fromkeys(best)  # the unedited model does not take part
    cells = [_cells(one, measures, best if place else nothing) for place, one in enumerate(summaries)]
    lines = [Line((o.editor, str(o.edits), *own), editors.index(o.editor)) for o, own in zip(summaries, cells, strict=True)]
    columns = ("editor", "edits", *(measure.title for measure in measures))
    text = "Scores on all edits so far, at the last checkpoint. Columns with tf use teacher forcing; the other scores use "
    text += "free generation. The best value of a column is bold: the highest score, the perplexity nearest to the unedited "
    text += "model's, the lowest time, memory and norm. "
    if len(summaries[0].seeds) > 1:
        text += "A cell is the mean over seeds; the small numbers are the lowest and the highest seed."
    elif any(summary and summary.interval for one in summaries for summary in one.measures.values()):
        text += "The small numbers are the 95 % bootstrap interval over edits."
    table = Table("Editors at the last checkpoint, sorted by harmonic mean", columns, lines)
    return Section("comparison", "Comparison of editors", text.strip(), tables=[table], has_legend=True)


def _cells(one: EditorSummary, measures: Sequence[Measure], best: Mapping[str, float | None]) -> Iterator[Cell]:
    for measure in measures:
        summary = one.measures[measure.name]
        if summary is None:
            yield Cell("–")
            continue
        low, high = (as_text(measure, end) for end in summary.interval or (summary.min, summary.max))
        text, top = as_text(measure, summary.mean), best[measure.name]
        is_best = top is not None and text == as_text(measure, top)
        yield Cell(text, "" if low == high == text else f"{low}–{high}", strong=is_best)


def _best(measure: Measure, summaries: Sequence[EditorSummary]) -> float | None:
    """Return the value to print in bold; None if all look the same or the measure has no best value."""
    found = (one.measures[measure.name] for one in summaries)
    values = [summary.mean for summary in found if summary is not None and math.isfinite(summary.mean)]
    if measure.best == "none" or len({as_text(measure, value) for value in values}) < 2:
        return None
    if measure.best == "nearest 1":
        return min(values, key=lambda value: abs(math.log(value)) if value > 0 else math.inf)
    return min(values) if measure.best == "lowest" else max(values)


def _curves(rows: Sequence[CheckpointScores], editors: Sequence[str]) -> Section:
    found = (curve_picture(rows, measure.name, measure.title, editors) for measure in MEASURES if measure.is_drawn)
    pictures = [picture for picture in found if picture]
    num_seeds = len({row.seed for row in rows})
    text = "Scores on all edits so far, by free generation. "
    if num_seeds > 1:
        text += f"A line is the mean over {num_seeds} seeds. "
    if any(row.intervals for row in rows):
        text += "A band is the 95 % bootstrap interval over edits."
        if num_seeds > 1:
            text += " It spans the intervals of all seeds, or the seeds' values for a score without intervals."
    elif num_seeds > 1:
        text += "A band spans the lowest to the highest seed."
    return Section("curves", "Scores over the edits", text.strip(), pictures, has_legend=True)


def _time(summaries: Sequence[EditorSummary], editors: Sequence[str]) -> Section:
    picture = trade_picture(summaries, editors)
    text = "Mean time of one edit over the stream, and harmonic mean at its end. Training and the measuring of second moments "
    text += "are not included."
    return Section("time", "Time and quality", text if picture else "No editor was timed.", [picture] if picture else [])


def _norms(rows: Sequence[CheckpointScores], editors: Sequence[str]) -> Section:
    pictures = [picture for name, title in NORMS.items() if (picture := curve_picture(rows, name, title, editors))]
    text = "Frobenius norms of the matrix where they are largest; W0 is the matrix of the unedited model."
    return Section("norms", "Norm growth", text, pictures, has_legend=True)


def _failures(answers: Sequence[Answer], summaries: Sequence[EditorSummary], editors: Sequence[str]) -> Section:
    title = "Failed questions"
    if not answers:
        return Section("failures", title, f"This benchmark has no {FILE}, so its failed questions are not known.")
    counted = counts(answers)
    kinds = [kind for kind in KINDS if any(kind == asked for _, asked in counted)]
    there = [one.editor for one in summaries if any(one.editor == editor for editor, _ in counted)]
    lines = [
        Line((editor, *(_share(counted.get((editor, kind))) for kind in kinds)), editors.index(editor)) for editor in there
    ]
    tables = [Table("Wrong answers by kind of question, at the last checkpoint", ("editor", *kinds), lines)]
    tables += [_failed(editor, failures(answers, editor)) for editor in there[1:]]
    text = "Answers by free generation at the last checkpoint. The wanted answer is the target; for locality it is the answer "
    text += "of the unedited model."
    return Section("failures", title, text, tables=tables, can_be_searched=True)


def _share(count: tuple[int, int] | None) -> Cell:
    return Cell("–") if count is None else Cell(f"{count[0]:,}", f"of {count[1]:,}")


def _failed(editor: str, wrong: Sequence[Answer]) -> Table:
    lines = [Line((one.prompt, one.kind, one.wanted, one.answer or "(nothing)", str(one.seed))) for one in wrong]
    shown, note = capped(lines, MOST_FAILURES, "failures")
    columns = ("prompt", "kind", "wanted", "generated", "seed")
    caption = f"Wrong answers of {editor}"
    return Table(caption, columns, shown, num_text=5, note=note, folded=f"{editor}: {len(wrong):,} failed")


def _pairs(answers: Sequence[Answer], summaries: Sequence[EditorSummary]) -> Section:
    title, asked = "Pairs of editors, by question", {answer.editor for answer in answers}
    editors = [one.editor for one in summaries[1:] if one.editor in asked]
    if len(editors) < 2:
        return Section("pairs", title, f"A comparison by question needs the answers of two editors in {FILE}.")
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
    text = "Counts of the questions that both editors were asked, over all seeds. The figure shows efficacy. p is the p-value "
    text += "of McNemar's exact test, without a correction for the number of pairs."
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
    text = "The settings of each editor in this run." if tables else "report.json has no settings."
    return Section("settings", "Settings", text, tables=tables)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Flatten nested settings to pairs such as (`reward.discount`, `0.9`)."""
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
    tables = [Table("Facts about the run in report.json", ("field", "value"), lines, num_text=2)] if lines else []
    text = str(meta.get("note") or "") or ("" if lines else "There is no report.json beside rows.parquet.")
    return Section("how", "How it was run", text, tables=tables)
