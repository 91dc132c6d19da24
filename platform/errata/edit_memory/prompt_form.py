"""Prompts as token ids, in completion and in chat: which question they ask, and what they are with a text put before it."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import NamedTuple

from errata.edit import EditRejected
from errata.model.renderer import Renderer
from errata.text.dialogue import Dialogue, Message
from errata.text.rules import same_text

_QUESTION, _SYSTEM, _EARLIER, _SAID = "erratasquestion", "erratassystem", "errataasked", "erratasaid"


class _ChatParts(NamedTuple):
    """Texts that a chat template writes around a question, with a system text and without one."""

    before_question: str
    before_system: str
    after_system: str
    user_header: str
    after_question: str


class AskedQuestion(NamedTuple):
    """A prompt as it is compared: its question, composed (NFC); its whole text, as `same_text` writes it; and its form."""

    question: str
    text: str
    in_chat: bool


class PromptForm:
    """The forms of one tokenizer's prompts."""

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer

    def asked(self, ids: Sequence[int]) -> AskedQuestion:
        """Return the question of a dialogue, which is the last message, or the whole text of a completion."""
        text = self._text(ids)
        chat = self._chat(text)
        if chat is None:
            question: str = self.renderer.tokenizer.decode(ids, skip_special_tokens=True)
        else:
            question = text[self._question_at(text, chat) : len(text) - len(chat.after_question)]
        return AskedQuestion(unicodedata.normalize("NFC", question), same_text(text), chat is not None)

    def with_text(self, ids: Sequence[int], put: str) -> list[int]:
        """Return the prompt with a text put in: at the end of the system text in chat, or in a line before a completion.

        A dialogue without a system text gets one, if the template knows system texts; otherwise the text precedes the question.
        """
        text = self._text(ids)
        chat = self._chat(text)
        if chat is None:
            whole = f"{put}\n{self.renderer.tokenizer.decode(ids, skip_special_tokens=True)}"
        elif chat.before_system and text.startswith(chat.before_system) and self._system_end(text, chat) >= 0:
            end = self._system_end(text, chat)
            whole = f"{text[:end]}\n{put}{text[end:]}"
        elif chat.before_system and text.startswith(chat.before_question):
            whole = f"{chat.before_system}{put}{chat.after_system}{text[len(chat.before_question) :]}"
        else:
            at = self._question_at(text, chat)
            whole = f"{text[:at]}{put}\n{text[at:]}"
        found: list[int] = self.renderer.tokenizer(whole, add_special_tokens=chat is None)["input_ids"]
        return found

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self.renderer.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def _chat(self, text: str) -> _ChatParts | None:
        """Return the template's parts if the text is of it."""
        parts = self._parts
        if parts is None or not text.endswith(parts.after_question) or parts.user_header not in text:
            return None
        return parts

    def _question_at(self, text: str, chat: _ChatParts) -> int:
        return text.rfind(chat.user_header, 0, len(text) - len(chat.after_question)) + len(chat.user_header)

    def _system_end(self, text: str, chat: _ChatParts) -> int:
        closing = chat.after_system.removesuffix(chat.user_header) or chat.after_system
        return text.find(closing, len(chat.before_system))

    @cached_property
    def _parts(self) -> _ChatParts | None:
        """The parts of the chat template; None for a model that is not asked in chat."""
        if self.renderer.form != "chat":
            return None
        before_question, _, after_question = self.renderer.text(Dialogue.of(_QUESTION)).partition(_QUESTION)
        earlier = (Message("user", _EARLIER), Message("assistant", _SAID))
        later = self.renderer.text(Dialogue.of(_QUESTION, earlier)).partition(_SAID)[2].partition(_QUESTION)[0]
        header = _common_end(before_question, later)
        try:
            with_system = self.renderer.text(Dialogue.of(_QUESTION, (Message("system", _SYSTEM),)))
        except EditRejected:  # The template takes no system text.
            with_system = ""
        before_system, found, rest = with_system.partition(_SYSTEM)
        after_system = rest.partition(_QUESTION)[0]
        if not found:
            before_system = after_system = ""
        elif shorter := _common_end(header, after_system):
            header = shorter
        return _ChatParts(before_question, before_system, after_system, header, after_question) if header else None


@lru_cache(16)
def form_of(renderer: Renderer) -> PromptForm:
    """Return the prompt form of a renderer, which is found once: every change of a memory makes another reader."""
    return PromptForm(renderer)


def _common_end(one: str, other: str) -> str:
    count = next((i for i, (a, b) in enumerate(zip(one[::-1], other[::-1], strict=False)) if a != b), min(len(one), len(other)))
    return one[len(one) - count :]
