"""The page about a ledger."""

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
from errata.reports.ledger_history import Event, History, number
from errata.reports.page import Cell, Line, Page, Section, Series, Table, capped

MOST_LINES = 200
SCORES = {
    "efficacy": "efficacy",
    "generalisation": "generalisation",
    "locality": "locality",
    "locality_gold": "locality (gold)",
    "portability": "portability",
    "retention": "retention",
}
LIMITED = {  # what was measured: how it is called here, and the guard's limit on it
    "ppl_ratio": ("perplexity / base", "perplexity"),
    "lost_retention": ("earlier edits lost", "forgotten"),
    "lost_locality": ("unrelated answers changed", "disturbed"),
}
TONES = {"published": "ok", "warned": "warn", "refused": "bad"}


def ledger_page(directory: str | Path) -> Page:
    """Raises what `History.read` raises."""
    history = History.read(directory)
    title, subtitle = "Ledger report", f"{history.directory}, over {Path(history.base['model']).name}"
    if not history.points:
        sections = [
            Section("empty", "Nothing yet", "This ledger holds version 0 alone, the unedited model: no edit was published.")
        ]
        if history.events:
            sections.append(_guard(history))
        return Page(title, subtitle, _facts(history), sections)
    sections = [_scores(history), _guard(history), _norms(history), _failures(history), _chain(history)]
    modules = _modules(history)
    series = [Series(name, *_css(index)) for index, name in enumerate(modules)]
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
        ("head moved by hand", f"{len(history.moves):,} times" if len(history.moves) != 1 else "once"),
        ("from", _moment(history.started)),
        ("to", _moment(last)),
        ("all deltas", _size(sum(version.num_bytes for version in versions))),
    ]
    edit_s, guard_s = (sum(number(v.scorecard, name) or 0.0 for v in versions) for name in ("edit_s", "guard_s"))
    if edit_s and guard_s:
        facts.append(("guard's time by the editor's", f"{guard_s / edit_s:.0%} ({guard_s:.1f} s, {edit_s:.1f} s)"))
    return facts


def _scores(history: History) -> Section:
    methods = list(dict.fromkeys(str(p.version.scorecard.get("method", "")) for p in history.points if p.version.scorecard))
    text = "Each version is scored on its own batch and on samples of earlier edits and unrelated questions"
    text += f" ({', '.join(filter(None, methods))}). " if any(methods) else ". "
    text += "The band of efficacy is Wilson's 95 % interval. "
    if len(history.main) > MOST_POINTS:
        size = -(-len(history.main) // MOST_POINTS)
        text += (
            f"A point stands for {size} versions in a row: the mean over their edits, and the worst where there is a limit. "
        )
    if len(history.main) < len(history.points):
        text += "Hollow points are versions of branches that were left after a rollback."
    pictures = [picture for name, title in SCORES.items() if (picture := score_picture(history, name, title))]
    if not pictures:
        text = "No version of this ledger was scored."
    return Section("scores", "Scores", text.strip(), pictures)


def _guard(history: History) -> Section:
    found = (limit_picture(history, name, title, _limits(history, limit)) for name, (title, limit) in LIMITED.items())
    known = [limits for _, limit in LIMITED.values() if (limits := history.limits(limit))]
    whose = "the limits that it judged by" if known else "the guard's default limits (this ledger does not say which it had)"
    text = f"Every update is measured before it is published. Dashed lines are {whose}, crosses what it refused."
    text += " A line ends where a limit was changed." if any(len(limits) > 1 for limits in known) else ""
    return Section(
        "guard",
        "The guard's history",
        text,
        [strip_picture(history), *(picture for picture in found if picture)],
        [_events(history)],
        can_be_searched=True,
    )


def _limits(history: History, name: str) -> Limits:
    """As the ledger has them, or the defaults if it does not say."""
    return history.limits(name) or [(-math.inf, getattr(Guard(), name))]


def _events(history: History) -> Table:
    """What the guard objected to comes before what it let through, where there is no room for all."""
    loud = [event for event in history.events if event.outcome != "published"]
    quiet = [event for event in history.events if event.outcome == "published"]
    chosen = [*loud[::-1], *quiet[::-1]][:MOST_LINES]
    left = len(history.events) - len(chosen)
    lines = [_event_line(event) for event in sorted(chosen, key=lambda event: event.time, reverse=True)]
    columns = ("version", "time (UTC)", "outcome", "what", "why", "efficacy", "locality", "perplexity / base")
    note = f"and {left:,} older updates that are not shown" if left else ""
    return Table("What the guard said of each update, the newest first", columns, lines, num_text=5, note=note)


def _event_line(event: Event) -> Line:
    which = f"after {event.version}" if event.outcome == "refused" else str(event.version)
    outcome = Cell(event.outcome, strong=True, tone=TONES[event.outcome])
    scores = (_number(number(event.scores, name)) for name in ("efficacy", "locality", "ppl_ratio"))
    return Line((which, _moment(event.time), outcome, event.what, "; ".join(event.reasons) or "–", *scores))


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
        found["norms"] = None  # the same once more, in other units
    text = "Frobenius norms of the edited matrices W and of each version's own change, the delta; W0 is the unedited model's."
    pictures = [picture for picture in found.values() if picture]
    return Section("norms", "Norm growth", text, pictures, has_legend=True)


def _failures(history: History) -> Section:
    lines = [Line((str(one.version), one.prompt, one.target, one.answer or "(nothing)")) for one in history.failed]
    if not lines:
        known = any("failed" in point.version.scorecard for point in history.points)
        text = "Every version answers all edits of its batch." if known else "This ledger does not say which edits failed."
        return Section("failures", "Edits that failed", text)
    text = f"Published in a version that does not answer them by their targets: {len(lines):,}."
    shown, note = capped(lines, MOST_LINES, "older ones")
    columns = ("version", "prompt", "wanted", "the model says")
    table = Table("Edits that failed, the newest first", columns, shown, num_text=4, note=note)
    return Section("failures", "Edits that failed", text, tables=[table], can_be_searched=True)


def _chain(history: History) -> Section:
    text = "Versions from left to right; the ring is the head, which is served. Nothing is ever deleted. "
    text += (
        "Numbered arrows are moves of the head by hand, grey versions no longer lead to the newest." if history.moves else ""
    )
    lines = [Line((str(i), _moment(m.time), str(m.before), str(m.version))) for i, m in enumerate(history.moves, 1)]
    shown, note = capped(lines[::-1], MOST_LINES, "older ones")
    table = Table("Moves of the head, the newest first", ("move", "time (UTC)", "from", "to"), shown, num_text=2, note=note)
    return Section("chain", "The chain", text.strip(), [chain_picture(history)], [table] if lines else [])


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _moment(time: str) -> str:
    """To the second; what is no ISO time stays as it is."""
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
