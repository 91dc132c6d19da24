"""HalluEditBench: facts of Wikidata that a model gets wrong, with questions in many forms.

CSV with {topic, subject, relation, object, question, paraphrased_question, yes_question, no_question, locality_question,
reversed_relation_question, question_2hop, answer_2hop, … question_6hop, answer_6hop, multiple_choice_with_letters,
multiple_choice_labels, output_MODEL, eval_MODEL}; read off edit_all_method.py and the files of
github.com/llm-editing/HalluEditBench, which edits `question` to `object`. Its answers are yes, no, and the subject for the
reversed question. locality_question is asked before and after the edit and has no answer, so it is no probe here and counted
as left out. Multiple choice needs instructions of its own and is not read.
"""

from __future__ import annotations

from errata.datasets.formats.fields import LeftOut, Record, either, optional_text, text, written
from errata.datasets.formats.probes import pair
from errata.edit import Edit, Probe

HOPS = {2: "two_hop", 3: "multi_hop", 4: "multi_hop", 5: "multi_hop", 6: "multi_hop"}


def matches(record: Record) -> bool:
    return {"question", "relation"} <= set(record) and bool({"object", "label"} & set(record))


def edit(record: Record, left_out: LeftOut) -> Edit:
    subject, rephrasing = written(record, "subject"), optional_text(record, "paraphrased_question", left_out)
    implied = {"yes_question": ("Yes", "yes"), "no_question": ("No", "no"), "reversed_relation_question": (subject, "reverse")}
    asked = [
        Probe(question, answer, kind)
        for name, (answer, kind) in implied.items()
        if (question := optional_text(record, name, left_out)) is not None
    ]
    for number, kind in HOPS.items():
        asked += pair(record, f"question_{number}hop", f"answer_{number}hop", left_out, kind)
    return Edit(
        prompt=text(record, "question"),
        target=written(record, either(record, "object", "label")),
        subject=subject,
        rephrasings=() if rephrasing is None else (rephrasing,),
        locality=pair(record, "locality_question", "locality_answer", left_out),
        portability=tuple(asked),
    )
