"""Results of the demo: tables for the terminal, the fields of report.json, and the plot of the scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from errata.durable import replaced
from errata.edit import Edit
from errata.ledger import Ledger
from errata.testbed.fact import Fact
from errata.text.answers import normalise_answer
from errata.text.dialogue import Dialogue, Prompt
from jobs.demo_answers import FORMS, TWO_HOP
from jobs.demo_traffic import Traffic

SCORES = ("efficacy", "generalisation", "locality", "locality_gold", "portability", "retention")
PLOTTED = ("efficacy", "generalisation", "locality")
CHAT_SCORES = {
    **FORMS,
    "retention": "the first 50 corrections",
    TWO_HOP: "what follows: the continent of a city's country",
    "kept": "facts that it knew before",
}
Point = Mapping[str, float | None]


def described(point: Point) -> str:
    """Scores after a number of edits, in one line."""
    found = {name: point.get(name) for name in (*PLOTTED, *CHAT_SCORES)}
    return ", ".join(f"{name} {score:.2f}" for name, score in found.items() if score is not None)


def facts_table(edits: Sequence[Edit], before: Mapping[Prompt, str], after: Mapping[Prompt, str]) -> Table:
    """Tabulate a few edits with their rephrasings, and a few questions that no edit concerns."""
    table = Table("asked", "before", "corrected to", "the served vLLM says now", title="A handful of facts")
    for edit in edits[:: max(1, len(edits) // 4)][:4]:
        for prompt in (edit.prompt, *edit.rephrasings):
            right = normalise_answer(after[prompt]) == normalise_answer(edit.target)
            table.add_row(prompt, before[prompt], edit.target, f"{after[prompt]} {'✓' if right else '✗'}")
    for probe in [p for e in edits[:40:10] for p in e.locality[:1]]:
        table.add_row(probe.prompt, before[probe.prompt], "(unrelated)", after[probe.prompt])
    return table


def service_figures(timings: Sequence[Mapping[str, Any]], ledger: Ledger, traffic: Traffic) -> dict[str, Any]:
    """Collect times of edits and swaps, sizes of deltas, and counts of requests."""
    swaps = sorted(timing["swap_ms"] for timing in timings)
    versions = [version for version in ledger.versions() if version.number]
    return {
        "swap_ms_p50": swaps[len(swaps) // 2],
        "swap_ms_p99": swaps[min(len(swaps) - 1, int(0.99 * len(swaps)))],
        "edit_ms_p50": sorted(1e3 * timing["edit_s"] for timing in timings)[len(timings) // 2],
        "delta_bytes": [version.num_bytes for version in versions],
        "dense_bytes": [ledger.delta(version.number).dense_bytes for version in versions],
        "requests": traffic.num_requests,
        "failed_requests": len(traffic.failed),
        "failures": dict(Counter(traffic.failed)),
        "unversioned_requests": traffic.num_unversioned,
        "stale_requests": traffic.num_stale,
        "mixed_version_requests": traffic.num_mixed,
    }


def versions_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Tabulate the versions that MLflow has."""
    table = Table("MLflow version", "Errata version", "aliases", "fingerprint")
    for row in rows:
        aliases = ", ".join(row.get("aliases", ()))
        table.add_row(str(row["mlflow_version"]), str(row["version"]), aliases, str(row["fingerprint"])[:12])
    return table


def scores_table(report: Mapping[str, Any]) -> Table:
    """Tabulate the scorecard of the newest version, and what serving it cost."""
    table = Table("measured by free generation from the served vLLM", "", title="Scorecard")
    for name in SCORES:
        if report[name] is not None:
            table.add_row(name, f"{report[name]:.3f}")
    table.add_row("perplexity of other sentences", f"{report['perplexity_base']:.2f} before, {report['perplexity']:.2f} after")
    table.add_row("swap, median / p99", f"{report['swap_ms_p50']:.0f} / {report['swap_ms_p99']:.0f} ms")
    payload = f"{max(report['delta_bytes']):,} bytes of factors ({max(report['dense_bytes']):,} dense)"
    table.add_row("payload of a swap", payload)
    table.add_row("requests during the edits", f"{report['requests']}, failed {report['failed_requests']}")
    table.add_row("vLLM against transformers", f"{report['parity_checked']} prompts compared, {report['parity_failed']} differ")
    return table


def wrong_answers_table(facts: Sequence[Fact], answers: Mapping[Prompt, str]) -> Table:
    """Tabulate facts that the model gets wrong."""
    table = Table("asked in chat", "the served vLLM says", "true", title="Wrong answers")
    for fact in facts:
        table.add_row(fact.question(), one_line(answers[Dialogue.of(fact.question())]), fact.target)
    return table


def answers_table(edits: Sequence[Edit], before: Mapping[Prompt, str], after: Mapping[Prompt, str]) -> Table:
    """Tabulate edits with the answers to their questions before and after."""
    table = Table("asked in chat", "before", "corrected to", "the served vLLM says now", title="A handful of corrections")
    for edit in edits:
        for prompt in edit.prompts:
            sign = " ✓" if edit.question(prompt).is_answered_by(after[prompt]) else " ✗"
            table.add_row(str(prompt), one_line(before[prompt]), edit.target, one_line(after[prompt]).append(sign))
    return table


def one_line(text: str) -> Text:
    """Return an answer as one line, in which nothing is markup."""
    return Text(" ".join(text.split()))


def chat_scores_table(report: Mapping[str, Any]) -> Table:
    """Tabulate the scores of a real model before and after the edits, and what serving it cost."""
    title = f"{report['edits']} corrections of {report['model']}: share of right answers"
    table = Table("generated freely in chat by the served vLLM", "before", "after", title=title)
    for name, words in CHAT_SCORES.items():
        if report[name] is not None:
            table.add_row(words, f"{report[f'{name}_before']:.2f}", f"{report[name]:.2f}")
    table.add_section()
    for words, value in _service_rows(report):
        table.add_row(words, "", value)
    return table


def _service_rows(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "perplexity of other prose, relative", f"{report['ppl_ratio']:.3f}"
    if "style_length_ratio" in report:
        drift = f"{report['style_length_ratio']:.2f}; {report['style_nll_change']:+.2f}"
        yield "answers about other facts: length, relative; -log p a token, change", drift
    yield "edits rejected; applied and not answered right", f"{report['rejected']}; {report['applied_unanswered']}"
    yield "swap, median / p99", f"{report['swap_ms_p50']:.0f} / {report['swap_ms_p99']:.0f} ms"
    if report["token_gap_ms_p99"] is not None:
        gaps = f"{report['token_gap_ms_p50']:.0f} / {report['token_gap_ms_p99']:.0f} ms"
        at_swap = report["token_gap_ms_p99_at_swap"]
        yield "between two tokens of a stream, median / p99", gaps
        yield "the same at a swap, p99", "no stream met a swap" if at_swap is None else f"{at_swap:.0f} ms"
    yield "chats streamed during the edits", f"{report['requests']}, failed {report['failed_requests']}"
    yield "vLLM against transformers", f"{report['parity_checked']} dialogues compared, {report['parity_failed']} differ"


def plot(curve: Sequence[Point], path: Path) -> Path:
    """Scores by the number of edits, as a PNG; returns `path`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name in (name for name in (*PLOTTED, "answered") if curve[0].get(name) is not None):
        known = [(point["edits"] or 0, value) for point in curve if (value := point[name]) is not None]
        axes.plot(*zip(*known, strict=True), marker="o", label=name)
    title = "Served by vLLM, edit by edit"
    axes.set(xlabel="edits applied", ylabel="share of free-running answers", ylim=(0, 1.03), title=title)
    axes.legend(loc="lower left")
    axes.grid(alpha=0.3)
    with replaced(path) as file:
        figure.savefig(file, format="png", dpi=150)
    return path
