"""What every edit goes through after its format, whatever file it comes from: templates, absent subjects, the check.

`{}` in a prompt or a rephrasing is the place of the subject, as in ROME's, MQuAKE's and FastEdit's files. A prompt with `{}`
and no subject is refused; a rephrasing is left out, and so is a probe, because its subject may be another one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from errata.datasets.formats.fields import LeftOut
from errata.edit import Code, Edit, EditRejected, Probe
from errata.text.rules import subject_span

PLACE = "{}"
AbsentSubject = Literal["refuse", "drop"]  # what is done with an edit whose subject is not in its prompt
DROP_ADVICE = '--absent-subject drop (absent_subject="drop" in Python) reads the edit without its subject'


def completed(edit: Edit, absent_subject: AbsentSubject, left_out: LeftOut) -> Edit:
    """Return the edit with its templates filled and checked. Raises `EditRejected` with its first fault."""
    if PLACE in edit.prompt or any(PLACE in rephrasing for rephrasing in edit.rephrasings):
        edit = _filled(edit, left_out)
    for name in ("locality", "portability"):
        probes = getattr(edit, name)
        if probes and any(PLACE in probe.prompt for probe in probes):
            edit = replace(edit, **{name: _whole(probes, name, left_out)})
    if absent_subject == "drop" and edit.subject is not None and subject_span(edit.prompt, edit.subject) is None:
        left_out.append(_absent(edit))
        edit = replace(edit, subject=None)
    for fault in edit.faults():
        if fault.code == Code.SUBJECT_NOT_IN_PROMPT:
            raise EditRejected(f"{fault.reason}; {DROP_ADVICE}", field=fault.field, code=fault.code)
        raise EditRejected.of([fault])
    return edit


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


def _absent(edit: Edit) -> EditRejected:
    reason = f"{edit.subject!r} does not occur in the prompt {edit.prompt!r}; the edit is read without its subject"
    return EditRejected(reason, field="subject", code=Code.SUBJECT_NOT_IN_PROMPT)
