"""Completion of edits after the conversion from their format: templates, absent subjects, the check.

`{}` in a prompt or a rephrasing is the place of the subject, as in ROME's, MQuAKE's and FastEdit's files. A prompt with `{}`
and no subject is refused; a rephrasing is left out, and so is a probe, because its subject may be another one.
"""

from __future__ import annotations

from dataclasses import replace
from operator import attrgetter
from typing import Any, Literal

from errata.datasets.formats.fields import LeftOut
from errata.edit import ORIGIN, Code, Edit, EditRejected, Probe
from errata.text.rules import is_blank, subject_span, text_fault

PLACE = "{}"
OPTIONS = ("rephrasings", "locality", "portability")
AbsentSubject = Literal["refuse", "drop"]  # what is done with an edit whose subject is not in its prompt
DROP_ADVICE = '--absent-subject drop (absent_subject="drop" in Python) reads the edit without its subject'
_checked_further = attrgetter("before", "aliases", "answer", *ORIGIN)  # Fields with rules of their own, which few edits have.


def completed(edit: Edit, absent_subject: AbsentSubject, left_out: LeftOut) -> Edit:
    """Return the edit with its templates filled and checked. Raises `EditRejected` with its first fault."""
    if _is_evidently_whole(edit):
        return edit
    if PLACE in edit.prompt or PLACE in "\n".join(edit.rephrasings):
        edit = _filled(edit, left_out)
    for name, probes in (("locality", edit.locality), ("portability", edit.portability)):
        if probes and any([PLACE in probe.prompt for probe in probes]):
            whole = _whole(probes, name, left_out)
            edit = replace(edit, locality=whole) if name == "locality" else replace(edit, portability=whole)
    if absent_subject == "drop" and edit.subject is not None and subject_span(edit.prompt, edit.subject) is None:
        left_out.append(_absent(edit))
        edit = replace(edit, subject=None)
    faults = list(edit.faults())
    if any(fault.field in OPTIONS for fault in faults):
        edit = _pruned(edit, left_out)
        faults = list(edit.faults())
    for fault in faults:
        if fault.code == Code.SUBJECT_NOT_IN_PROMPT:
            raise EditRejected(f"{fault.reason}; {DROP_ADVICE}", field=fault.field, code=fault.code)
        raise EditRejected.of([fault])
    return edit


def _is_evidently_whole(edit: Edit) -> bool:
    """Test in one pass what holds for most edits: printable ASCII, no template, no empty text, the subject in the prompt.

    Nor has the edit a field with rules of its own. `Edit.faults` finds nothing in such an edit, and takes five times as long
    to do so.
    """
    texts = [edit.prompt, edit.target, *edit.rephrasings]
    for probe in edit.locality:
        texts += probe.prompt, probe.target, *probe.aliases
    for probe in edit.portability:
        texts += probe.prompt, probe.target, *probe.aliases
    subject, joined = edit.subject, "".join(texts)
    return (
        joined.isascii()
        and joined.isprintable()
        and PLACE not in joined
        and all(map(str.strip, texts))
        and (subject is None or (subject in edit.prompt and bool(subject.strip())))
        and not any(_checked_further(edit))
    )


def _filled(edit: Edit, left_out: LeftOut) -> Edit:
    if PLACE in edit.prompt and not edit.subject:
        raise EditRejected(
            f"the prompt has {PLACE} and the record no subject: give the subject, or write it in place of {PLACE}",
            field="prompt",
            code=Code.INVALID_VALUE,
        )
    rephrasings = []
    for index, rephrasing in enumerate(edit.rephrasings):
        if PLACE not in rephrasing or edit.subject:
            rephrasings.append(rephrasing.replace(PLACE, edit.subject or ""))
        else:
            reason = f"has {PLACE} and the record no subject"
            left_out.append(EditRejected(reason, field=f"rephrasings[{index}]", code=Code.INVALID_VALUE))
    return replace(edit, prompt=edit.prompt.replace(PLACE, edit.subject or ""), rephrasings=tuple(rephrasings))


def _whole(probes: tuple[Probe, ...], name: str, left_out: LeftOut) -> tuple[Probe, ...]:
    kept = []
    for index, probe in enumerate(probes):
        if PLACE in probe.prompt:
            reason = f"has {PLACE}, and it is not known in place of what"
            left_out.append(EditRejected(reason, field=f"{name}[{index}].prompt", code=Code.INVALID_VALUE))
        else:
            kept.append(probe)
    return tuple(kept)


def _pruned(edit: Edit, left_out: LeftOut) -> Edit:
    """Leave out the rephrasings and probes that have no visible character, or one that is no text."""
    kept: dict[str, Any] = {}
    for name in OPTIONS:
        good = []
        for index, one in enumerate(getattr(edit, name)):
            said = {"": one} if isinstance(one, str) else {".prompt": one.prompt, ".target": one.target}
            faults = [(part, _text_fault(text)) for part, text in said.items()]
            part, fault = next(((part, fault) for part, fault in faults if fault), ("", None))
            if fault is None:
                good.append(one)
            else:
                left_out.append(EditRejected(fault[0], field=f"{name}[{index}]{part}", code=fault[1]))
        kept[name] = tuple(good)
    return replace(edit, **kept)


def _text_fault(text: str) -> tuple[str, Code] | None:
    if is_blank(text):
        return "is empty", Code.EMPTY_FIELD
    fault = text_fault(text)
    return None if fault is None else (fault, Code.NOT_TEXT)


def _absent(edit: Edit) -> EditRejected:
    reason = f"{edit.subject!r} does not occur in the prompt {edit.prompt!r}; the edit is read without its subject"
    return EditRejected(reason, field="subject", code=Code.SUBJECT_NOT_IN_PROMPT)
