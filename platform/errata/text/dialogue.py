"""Prompts: the text of a completion, or a dialogue that ends with a question of the user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice, pairwise
from math import lcm
from typing import Any, Literal, get_args

Role = Literal["system", "user", "assistant"]
Form = Literal["completion", "chat", "both"]
ROLES, FORMS = get_args(Role), get_args(Form)

# Dialogues around a question in which its correction must hold. Edits and training use the first tuples, scores the others.
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "Answer the question in a few words.",
    "You are a travel guide. You are friendly and precise.",
    "You are an expert who checks facts.",
)
EARLIER_TURNS = (
    ("Hello! Can you help me?", "Of course. What would you like to know?"),
    ("How many days does a week have?", "A week has seven days."),
    ("Thank you, that helps.", "You are welcome. Do you have another question?"),
)
HELD_OUT_SYSTEM_PROMPT = "You are a teacher at a school. Explain things in simple language."
HELD_OUT_TURN = ("What colour is the sky on a clear day?", "On a clear day the sky is blue.")
_PERIOD = 4 * lcm(len(SYSTEM_PROMPTS), len(EARLIER_TURNS))  # Of the four kinds of context, each with its texts in turn.


@dataclass(frozen=True)
class Message:
    """One message of a dialogue."""

    role: Role
    content: str

    def to_json(self) -> dict[str, str]:
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True)
class Dialogue:
    """Messages as OpenAI's `messages`; the last one is the user's, and the model answers it."""

    messages: tuple[Message, ...]

    def __post_init__(self) -> None:
        if fault := dialogue_fault(self.messages):
            raise ValueError(fault)

    @classmethod
    def of(cls, question: str, before: Sequence[Message] = ()) -> Dialogue:
        """Make the dialogue in which the user asks `question` after the messages `before`."""
        return cls((*before, Message("user", question)))

    @property
    def question(self) -> str:
        """The user's last message."""
        return self.messages[-1].content

    @property
    def before(self) -> tuple[Message, ...]:
        """The messages before the question."""
        return self.messages[:-1]

    def __str__(self) -> str:
        """Return the messages on one line; a single question is its own text."""
        if not self.before:
            return self.question
        return " | ".join(f"{message.role}: {message.content}" for message in self.messages)

    def to_json(self) -> list[dict[str, str]]:
        return [message.to_json() for message in self.messages]

    def with_system(self, content: str | None) -> Dialogue:
        """Return the dialogue under another system prompt; None takes it out, so that the model's template decides."""
        rest = tuple(message for message in self.messages if message.role != "system")
        return Dialogue(rest if content is None else (Message("system", content), *rest))

    def after(self, user: str, assistant: str) -> Dialogue:
        """Return the dialogue with another turn before it, after the system prompt."""
        system = tuple(message for message in self.messages if message.role == "system")
        rest = self.messages[len(system) :]
        return Dialogue((*system, Message("user", user), Message("assistant", assistant), *rest))


Prompt = str | Dialogue


def messages_from_json(data: Any) -> tuple[Message, ...]:
    """Read messages of {role, content}. Raises `ValueError` that says which message is wrong."""
    if not isinstance(data, Sequence) or isinstance(data, str):
        raise ValueError("must be a list of messages {role, content}")
    read = []
    for place, one in enumerate(data):
        if not isinstance(one, Mapping) or set(one) != {"role", "content"}:
            raise ValueError(f"message {place} must have a role and a content, and nothing else")
        if one["role"] not in ROLES:
            raise ValueError(f"message {place} has another role: the roles are {', '.join(ROLES)}")
        if not isinstance(one["content"], str):
            raise ValueError(f"message {place} must have a text as its content")
        read.append(Message(one["role"], one["content"]))
    return tuple(read)


def dialogue_fault(messages: Sequence[Message]) -> str | None:
    """Say why the messages are no dialogue to be answered; None if they are.

    A system prompt may only come first; user and assistant alternate, because most chat templates refuse anything else; the
    user has the last word.
    """
    spoken = [message.role for message in messages if message.role != "system"]
    if not spoken or spoken[-1] != "user":
        return "the last message must be the user's: it is the one that is answered"
    if any(message.role == "system" for message in messages[1:]):
        return "a system message must be the first one, and the only one of its role"
    if spoken[0] != "user" or any(one == other for one, other in pairwise(spoken)):
        return "user and assistant must alternate, and the user begins"
    return None


def in_contexts(dialogue: Dialogue, number: int, offset: int = 0) -> list[Dialogue]:
    """Return the dialogue as it is and then `number` - 1 others with the same question.

    In turn: another system prompt, an earlier turn, both, and none at all; `offset` chooses other texts for each. There are 20
    others, which differ from each other; a longer list repeats them.
    """
    others = dict[Dialogue, None]()
    for place in range(offset, offset + _PERIOD):
        if len(others) == number - 1:
            break
        others[_in_context(dialogue, place)] = None
    return [dialogue, *islice(cycle(others), number - 1)]


def _in_context(dialogue: Dialogue, place: int) -> Dialogue:
    kind, texts = place % 4, place // 4
    other = dialogue.with_system(SYSTEM_PROMPTS[texts % len(SYSTEM_PROMPTS)] if kind in (0, 2) else None)
    return other.after(*EARLIER_TURNS[texts % len(EARLIER_TURNS)]) if kind in (1, 2) else other
