"""IKE: a correction is put into the prompt of a question that it fits, behind demonstrations of what to do with one.

Paper: IKE (arXiv 2305.12740). A demonstration is a new fact, a prompt and its answer. Those that copy ask for the fact itself,
those that update ask for it in other words, and those that retain ask for something else, whose answer stays. The prompt
becomes: demonstrations, the correction as a new fact with its own prompt and answer, the correction again, the question.
Deviations: the published demonstrations are 32 edits of a data set near the correction, 4 that copy, 12 that update and 16 that
retain, for each question other ones. Here they are `num_demonstrations` of eight that are written below, in the same shares,
which are the same for all questions, so that a serving engine keeps what it computed for them. Their new facts are of invented
things, and what they retain is true. The paper puts the correction before every prompt; here, as in SCR, only where it fits.
Remembers: the thresholds. The texts are in the memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

from errata.edit import Row
from errata.edit_memory.bank import Kind, Record
from errata.editors.memory_based.questions import QuestionMemory
from errata.text.joining import separator

FACT, PROMPT = "New fact: ", "Prompt:"


class Demonstration(NamedTuple):
    """A new fact, and a prompt with its answer, each as a sentence and as a question."""

    fact: tuple[str, str]
    prompt: tuple[str, str]
    answer: str


_RIVER = ("The river Talvo rises in Orsk.", "Where does the river Talvo rise? Orsk")
_FERRY = ("The ferry Halmia was built by Renn & Sons.", "Who built the ferry Halmia? Renn & Sons")
_OPERA = ("The opera Miravel was composed by Ilse Brandt.", "Who composed the opera Miravel? Ilse Brandt")
_TOWN = ("The mayor of Quillan is Pavo Lindt.", "Who is the mayor of Quillan? Pavo Lindt")
# The nearest ones to the question come last, so a smaller number leaves out the first. Copy 1, update 3, retain 4 of the eight.
DEMONSTRATIONS = (
    Demonstration(_TOWN, ("The capital of Norway is", "What is the capital of Norway?"), "Oslo"),
    Demonstration(_TOWN, ("The head of Quillan's town hall is", "Who heads the town hall of Quillan?"), "Pavo Lindt"),
    Demonstration(_OPERA, ("The play Hamlet was written by", "Who wrote the play Hamlet?"), "William Shakespeare"),
    Demonstration(_OPERA, ("The music of Miravel is by", "Whose music is the opera Miravel?"), "Ilse Brandt"),
    Demonstration(_FERRY, ("The Eiffel Tower is in", "Where is the Eiffel Tower?"), "Paris"),
    Demonstration(_FERRY, ("The ferry Halmia was built by", "Who built the ferry Halmia?"), "Renn & Sons"),
    Demonstration(_RIVER, ("The river Nile flows into the", "Into which sea does the Nile flow?"), "Mediterranean Sea"),
    Demonstration(_RIVER, ("The source of the Talvo is in", "In which town is the source of the Talvo?"), "Orsk"),
)


@dataclass(frozen=True)
class IKE(QuestionMemory):
    """IKE. `max_false` is the share of probe questions that the text of a record without a subject may be put before."""

    num_demonstrations: int = len(DEMONSTRATIONS)

    kind: ClassVar[Kind] = "text"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.num_demonstrations <= len(DEMONSTRATIONS):
            raise ValueError(f"num_demonstrations is from 0 to {len(DEMONSTRATIONS)}, not {self.num_demonstrations}")

    def written(self, row: Row, record: Record) -> Record:
        in_chat = not isinstance(row.prompt, str)
        shown = DEMONSTRATIONS[len(DEMONSTRATIONS) - self.num_demonstrations :]
        parts = [_shown(one.fact[in_chat], one.prompt[in_chat], one.answer) for one in shown]
        asked = row.prompt if isinstance(row.prompt, str) else row.prompt.question
        parts.append(_shown(record.text, asked, row.answer))
        # In chat the question is a message of its own.
        last = f"{FACT}{record.text}" if in_chat else f"{FACT}{record.text}\n{PROMPT}"
        return replace(record, text="\n\n".join((*parts, last)))


def _shown(fact: str, prompt: str, answer: str) -> str:
    return f"{FACT}{fact}\n{PROMPT}\n{prompt.strip()}{separator(prompt.strip(), answer)}{answer}"
