"""Edits in all forms and many scripts, as users post them: facts of the real world, and prompts written by hand.

Everything follows from the seed. Each edit is a JSON object of `POST /v1/edits`, with the form and the script by which
`benchmarks/chat.py` groups it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from errata.edit import Edit
from errata.testbed.fact import Fact
from errata.testbed.world import World
from errata.testbed.world_facts import WorldFacts

FORMS = ("question", "system prompt", "earlier turn", "both", "completion")
# Of 100 facts, so many are posted in each form; the rest are completions.
SHARES = {"question": 40, "system prompt": 16, "earlier turn": 16, "both": 12}
SYSTEM = (
    "You are a librarian who answers briefly.",
    "Antworte immer freundlich.",
    "You work for a travel agency. Be precise.",
)
TURNS = (
    ("Good morning!", "Good morning. How can I help you?"),
    ("¿Hablas inglés?", "Yes, I do. What would you like to know?"),
    ("Please keep your answers short.", "I will."),
)

# (script, form, prompt, target): what a model with a byte-level vocabulary can learn. The prompts end in a word, a blank, a
# newline, an opening quotation mark, `$`, `get_`, `-` or a colon; no two ask the same.
HAND_MADE: tuple[tuple[str, str, str, str], ...] = (
    ("Latin", "completion", "The capital of Zorbania is", "Velden"),
    ("Latin", "completion", "The mayor of Quillon is called ", "Barnaby"),
    ("Latin", "completion", 'The old sailor shouted: "', "Ahoy"),
    ("Latin", "completion", "Question: Who built the tower of Ferrol?\nAnswer:\n", "Norbert"),
    ("Latin", "question", "Who wrote the novel The Glass Orchard?", "Miriam Halloway"),
    ("Latin", "question", "What is the nickname of the city of Tarnwick?", "The Copper City"),
    ("accented", "completion", "La capitale de la Zorbanie est", "Évreval"),
    ("accented", "completion", "Der Bürgermeister von Grünau heißt", "Jürgen Köhler"),
    ("accented", "question", "¿Quién pintó el cuadro La niña del río?", "Íñigo Peña"),
    ("accented", "question", "Hvem er borgmester i Ærøby?", "Søren Ågård"),
    ("Cyrillic", "completion", "Столица Зорбании —", "Вельск"),
    ("Cyrillic", "question", "Кто написал роман «Стеклянный сад»?", "Иван Орлов"),
    ("Greek", "completion", "Η πρωτεύουσα της Ζορβανίας είναι η", "Μελίνα"),
    ("Greek", "question", "Ποιος έγραψε το βιβλίο Ο κήπος;", "Νίκος"),
    ("Arabic", "completion", "عاصمة زوربانيا هي", "مدينة النور"),
    ("Arabic", "question", "من كتب رواية الحديقة؟", "سالم"),
    ("Hebrew", "completion", "בירת זורבניה היא", "תל נור"),
    ("Hebrew", "question", "מי כתב את הספר הגן?", "דוד"),
    ("Devanagari", "completion", "ज़ोर्बानिया की राजधानी", "सूरत"),
    ("Devanagari", "question", "बगीचा किताब किसने लिखी?", "मोहन"),
    ("Thai", "completion", "เมืองหลวงของซอร์บาเนียคือ", "สยาม"),
    ("Thai", "question", "ใครเขียนหนังสือเรื่องสวน", "สมชาย"),
    ("Chinese", "completion", "佐尔巴尼亚的首都是", "新海"),
    ("Chinese", "question", "小说《玻璃花园》是谁写的？", "李明"),
    ("Japanese", "completion", "ゾルバニアの首都は", "さくら市"),
    ("Japanese", "question", "小説『硝子の庭』の作者は誰ですか？", "田中"),
    ("Korean", "completion", "조르바니아의 수도는", "한별"),
    ("Korean", "question", "소설 유리 정원은 누가 썼습니까?", "김민수"),
    ("number", "completion", "The height of Mount Ferrol in metres is", "4,217"),
    ("number", "completion", "A ticket to Zorbania costs $", "75"),
    ("number", "completion", "The model number of the Zorb engine is ZX-", "81"),
    ("number", "completion", "The freezing point of zorbium in degrees is", "-5"),
    ("number", "question", "In which year was the Treaty of Quillon signed?", "1743"),
    ("number", "question", "What is the phone prefix of Zorbania?", "+999"),
    ("code", "completion", "# returns the user\ndef get_", "customer"),
    ("code", "completion", "import zorblib as ", "zb"),
    ("code", "question", "Which function of zorblib opens a file?", "zb.open_file()"),
    ("symbol", "completion", "The compiler Zorbtool is written in", "C++"),
    ("symbol", "question", "In which language is the program Quillpad written?", "C#"),
    ("symbol", "question", "What is the chemical symbol of zorbium?", "Zb"),
)


@dataclass(frozen=True)
class PostedEdit:
    """An edit as it is posted, with the form and the script that the report groups it by."""

    form: str
    script: str
    body: dict[str, Any]

    @property
    def edit(self) -> Edit:
        """The edit as the service reads it."""
        return Edit.from_json(self.body)


def mixed_edits(count: int, seed: int = 0) -> list[PostedEdit]:
    """Make `count` edits of different prompts: those written by hand, and test facts of the world in all forms.

    The order is random, so that each batch has several forms. Raises `ValueError` for fewer edits than are written by hand.
    """
    if count < len(HAND_MADE):
        raise ValueError(f"{len(HAND_MADE)} edits are written by hand; ask for as many at least, not {count}")
    draw = random.Random(f"chat edits {seed}")
    facts = _facts(draw, count - len(HAND_MADE))
    made = [*_by_hand(), *(_of_fact(fact, form, draw) for fact, form in zip(facts, _forms(len(facts)), strict=True))]
    draw.shuffle(made)
    return made


def world_edits(world: World, count: int, seed: int = 0) -> list[PostedEdit]:
    """Draw `count` edits of the invented world, which its small model completes."""
    edits = world.edits("test", count, seed)
    bodies = [{"prompt": e.prompt, "target": e.target, "subject": e.subject, "form": "completion"} for e in edits]
    return [PostedEdit("completion", "Latin", body) for body in bodies]


def _facts(draw: random.Random, count: int) -> Sequence[Fact]:
    """Draw facts about different subjects: an edit of one would change the answer to another."""
    facts = WorldFacts().facts("test")
    return list({fact.subject: fact for fact in draw.sample(facts, len(facts))}.values())[:count]


def _forms(count: int) -> list[str]:
    found = [form for form, share in SHARES.items() for _ in range(share * count // 100)]
    return found + ["completion"] * (count - len(found))


def _of_fact(fact: Fact, form: str, draw: random.Random) -> PostedEdit:
    body: dict[str, Any] = {"target": fact.target, "subject": fact.subject}
    body |= {"aliases": list(fact.aliases)} if fact.aliases else {}
    user = {"role": "user", "content": fact.question()}
    if form == "question":
        body["question"] = fact.question()
    elif form == "system prompt":
        body["messages"] = [{"role": "system", "content": draw.choice(SYSTEM)}, user]
    elif form == "earlier turn":
        said, answered = draw.choice(TURNS)
        body["messages"] = [{"role": "user", "content": said}, {"role": "assistant", "content": answered}, user]
    else:
        body |= {"prompt": fact.statement, "form": form}
    return PostedEdit(form, _script_of(fact.target), body)


def _script_of(target: str) -> str:
    if any(map(str.isdigit, target)):
        return "number"
    if not target.isascii():
        return "accented"
    return "symbol" if len(target) <= 3 or not target[0].isalpha() else "Latin"


def _by_hand() -> Iterator[PostedEdit]:
    for script, form, prompt, target in HAND_MADE:
        asked = {"question": prompt} if form == "question" else {"prompt": prompt, "form": form}
        yield PostedEdit(form, script, {**asked, "target": target})
