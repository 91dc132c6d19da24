"""The report page of a ledger."""

from __future__ import annotations

import math
from datetime import datetime
from pathlib import Path

from errata.guard.limits import Guard
from errata.reports.figures import PALETTE
from errata.reports.ledger_figures import (
    MOST_POINTS,
    Limits,
    chain_picture,
    limit_picture,
    module_picture,
    module_style,
    score_picture,
    strip_picture,
)
from errata.reports.ledger_history import GuardEvent, History, number
from errata.reports.page import Cell, LegendEntry, Line, Page, Section, Table, capped

MOST_LINES = 200
SCORES = {
    "efficacy": "efficacy",
    "generalisation": "generalisation",
    "locality": "locality",
    "locality_gold": "locality (gold)",
    "portability": "portability",
    "retention": "retention",
}
LIMITED = {  # measured score: its title, and the name of the guard's limit
    "ppl_ratio": ("perplexity / base", "perplexity"),
    "lost_retention": ("retention lost", "forgotten"),
    "lost_locality": ("locality lost", "disturbed"),
    "fires": ("probes decided by new records", "fires"),
    "decided": ("probes decided by all records", "drift"),
}
TONES = {"published": "ok", "warned": "warn", "refused": "bad"}


def ledger_page(directory: str | Path) -> Page:
    """Build the page; raises like `History.read`."""
    history = History.read(directory)
    title, subtitle = "Ledger report", f"{history.directory}, base model {Path(history.base['model']).name}"
    if not history.points:
        sections = [
            Section("empty", "No versions yet", "This ledger has only version 0, the unedited model: no edit was published.")
        ]
        if history.events:
            sections.append(_guard(history))
        return Page(title, subtitle, _facts(history), sections)
    sections = [_scores(history), _guard(history), _norms(history), _failures(history), _chain(history)]
    modules = _modules(history)
    series = [LegendEntry(name, *_css(index)) for index, name in enumerate(modules)]
    return Page(title, subtitle, _facts(history), sections, series)


def _css(index: int) -> tuple[str, str]:
    colour, line = module_style(index)
    return f"var(--s{PALETTE.index(colour)})", "solid" if line == "-" else "dotted"


def _facts(history: History) -> list[tuple[str, str]]:
    versions = [point.version for point in history.points]
    editors = list(dict.fromkeys(version.editor for version in versions if version.editor))
    counts = {outcome: sum(event.outcome == outcome for event in history.events) for outcome in ("warned", "refused")}
    last = max([history.started, *(event.time for event in history.events), *(move.time for move in history.moves)])
    facts = [
        ("base model", Path(history.base["model"]).name),
        ("editor", ", ".join(editors) or "–"),
        ("versions", f"{len(versions):,}"),
        ("edits published", f"{sum(len(version.edits) for version in versions):,}"),
        ("head", f"version {history.head}, {history.held_by(history.head):,} edits"),
        ("published with a warning", f"{counts['warned']:,}"),
        ("edits refused", f"{counts['refused']:,}"),
        ("moves of the head", f"{len(history.moves):,}"),
        ("first entry", _moment(history.started)),
        ("last entry", _moment(last)),
        ("size of all deltas", _size(sum(version.num_bytes for version in versions))),
    ]
    edit_s, guard_s = (sum(number(v.scorecard, name) or 0.0 for v in versions) for name in ("edit_s", "guard_s"))
    if edit_s and guard_s:
        facts.append(("guard time / editor time", f"{guard_s / edit_s:.0%} ({guard_s:.1f} s, {edit_s:.1f} s)"))
    return facts


def _scores(history: History) -> Section:
    methods = list(dict.fromkeys(str(p.version.scorecard.get("method", "")) for p in history.points if p.version.scorecard))
    text = "Each version is scored on its own batch and on samples of earlier edits and unrelated questions"
    text += f" ({', '.join(filter(None, methods))}). " if any(methods) else ". "
    text += "The band around efficacy is Wilson's 95 % interval. "
    if len(history.main) > MOST_POINTS:
        size = -(-len(history.main) // MOST_POINTS)
        text += f"A point shows {size} consecutive versions: the mean over their edits, or the worst value if it is limited. "
    if len(history.main) < len(history.points):
        text += "Hollow points are versions of branches that were abandoned after a rollback."
    pictures = [picture for name, title in SCORES.items() if (picture := score_picture(history, name, title))]
    if not pictures:
        text = "No version of this ledger was scored."
    return Section("scores", "Scores", text.strip(), pictures)


def _guard(history: History) -> Section:
    found = (limit_picture(history, name, title, _limits(history, limit)) for name, (title, limit) in LIMITED.items())
    known = [limits for _, limit in LIMITED.values() if (limits := history.limits(limit))]
    whose = "the guard's limits at that time" if known else "the guard's default limits (this ledger does not record its own)"
    text = f"Every update is measured before it is published. Dashed lines are {whose}, crosses are refused updates."
    text += " A line ends where a limit was changed." if any(len(limits) > 1 for limits in known) else ""
    return Section(
        "guard",
        "History of the guard",
        text,
        [strip_picture(history), *(picture for picture in found if picture)],
        [_events(history)],
        can_be_searched=True,
    )


def _limits(history: History, name: str) -> Limits:
    """Return the limits that the ledger records, or the defaults if it records none."""
    return history.limits(name) or [(-math.inf, getattr(Guard(), name))]


def _events(history: History) -> Table:
    """List the verdicts, newest first; if there are too many, warnings and refusals take precedence."""
    objections = [event for event in history.events if event.outcome != "published"]
    published = [event for event in history.events if event.outcome == "published"]
    chosen = [*objections[::-1], *published[::-1]][:MOST_LINES]
    left = len(history.events) - len(chosen)
    lines = [_event_line(event) for event in sorted(chosen, key=lambda event: event.time, reverse=True)]
    columns = ("version", "time (UTC)", "verdict", "update", "reason", "efficacy", "locality", "perplexity / base")
    note = f"and {left:,} older updates that are not shown" if left else ""
    return Table("Verdicts of the guard, newest first", columns, lines, num_text=5, note=note)


def _event_line(event: GuardEvent) -> Line:
    which = f"after {event.version}" if event.outcome == "refused" else str(event.version)
    outcome = Cell(event.outcome, strong=True, tone=TONES[event.outcome])
    scores = (_number(number(event.scores, name)) for name in ("efficacy", "locality", "ppl_ratio"))
    reason = Cell("; ".join(event.reasons) or "–", note=event.code)
    return Line((which, _moment(event.time), outcome, event.what, reason, *scores))


def _modules(history: History) -> list[str]:
    cards = (point.version.scorecard for point in history.points)
    names = [name for card in cards for field in ("norm_growth", "relative_norm") for name in card.get(field) or ()]
    return list(dict.fromkeys([*names, *(name for point in history.points for name in point.version.norms)]))


def _norms(history: History) -> Section:
    modules = _modules(history)
    titles: dict[str, tuple[str, Limits]] = {
        "norm_growth": ("|W| / |W0|", _limits(history, "growth")),
        "relative_norm": ("|delta| / |W0|", _limits(history, "change")),
        "norms": ("|delta|", ()),
    }
    found = {field: module_picture(history, modules, field, *how) for field, how in titles.items()}
    if found["relative_norm"]:
        found["norms"] = None  # the same norms in other units
    text = "Frobenius norms of the edited matrices W and of each version's delta; W0 is the matrix of the unedited model."
    pictures = [picture for picture in found.values() if picture]
    return Section("norms", "Norm growth", text, pictures, has_legend=True)


def _failures(history: History) -> Section:
    lines = [Line((str(one.version), one.prompt, one.target, one.answer or "(nothing)")) for one in history.failed]
    if not lines:
        known = any("failed" in point.version.scorecard for point in history.points)
        text = "Every version answers all edits of its batch with their targets."
        text = text if known else "This ledger does not record edits that failed."
        return Section("failures", "Edits that failed", text)
    text = f"{len(lines):,} edits were published in a version that does not answer them with their targets."
    shown, note = capped(lines, MOST_LINES, "older ones")
    columns = ("version", "prompt", "wanted", "generated")
    table = Table("Edits that failed, newest first", columns, shown, num_text=4, note=note)
    return Section("failures", "Edits that failed", text, tables=[table], can_be_searched=True)


def _chain(history: History) -> Section:
    text = "Versions from left to right; the ring is the head, which is served. No version is ever deleted. "
    if history.moves:
        text += "Numbered arrows are moves of the head by rollback; grey versions are not ancestors of the newest version."
    lines = [Line((str(i), _moment(m.time), str(m.before), str(m.version))) for i, m in enumerate(history.moves, 1)]
    shown, note = capped(lines[::-1], MOST_LINES, "older ones")
    table = Table("Moves of the head, newest first", ("move", "time (UTC)", "from", "to"), shown, num_text=2, note=note)
    return Section("chain", "Chain of versions", text.strip(), [chain_picture(history)], [table] if lines else [])


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _moment(time: str) -> str:
    """Format an ISO time to the second; other texts are returned unchanged."""
    try:
        return datetime.fromisoformat(time).strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return time


def _size(num_bytes: int) -> str:
    size = float(num_bytes)
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} GiB"
