"""The renderer: a prompt and an answer as token ids, the prompt's exactly as vLLM makes them for the same request.

/v1/completions tokenises the prompt with the tokenizer's special tokens. /v1/chat/completions puts the messages into the chat
template, ends them with its generation prompt, and tokenises that text without more special tokens. The answer's ids are those
that the model would generate after these: a prompt is never tokenised again together with its answer. A blank that the template
writes between its generation prompt and an answer (Llama 2's " ", Zephyr's line end) is written by the model, too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import Any, Literal

from errata.edit import Code, Edit, EditRejected, Fault
from errata.text.dialogue import Dialogue, Message, Prompt
from errata.text.joining import separator
from errata.text.templates import reads_parts

# Texts before which an answer can be tokenised, where it cannot be together with its prompt. The first ones suit most
# tokenizers; a letter and a Han sign suit those that put a blank at the beginning of every text.
_CARRIERS = ("", "\n", "(", "a", "1", "中")
_ECHO = "errata"  # A text without special meaning in any template.
_FORMS = "A 1-é (ﬁ)"  # Some tokenizers lower it, take its accent away, or write it with other blanks.


class Renderer:
    """Token ids of prompts and answers for one tokenizer; `end_ids` are the tokens at which the served model stops."""

    def __init__(self, tokenizer: Any, end_ids: Collection[int] = ()) -> None:
        self.tokenizer, self.end_ids = tokenizer, frozenset(end_ids)
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self._special = frozenset({*tokenizer.all_special_ids, *(one for one, token in added.items() if token.special)})
        self.ids, self.text = lru_cache(maxsize=4096)(self._ids), lru_cache(maxsize=4096)(self._text)

    @property
    def pad_id(self) -> int:
        """The token that fills rows; 0 if the tokenizer has none."""
        pad: int | None = self.tokenizer.pad_token_id
        return 0 if pad is None else pad

    @property
    def can_chat(self) -> bool:
        """The tokenizer has a chat template."""
        return getattr(self.tokenizer, "chat_template", None) is not None

    @cached_property
    def form(self) -> Literal["completion", "chat"]:
        """The form in which the model is asked by default: chat, if its template marks whose turn it is.

        A template that only writes the messages one after the other makes a chat request the same as a completion.
        """
        if not self.can_chat:
            return "completion"
        return "completion" if self.text(Dialogue.of(_ECHO)).endswith(_ECHO) else "chat"

    def _text(self, prompt: Prompt) -> str:
        """Return the text that is tokenised. Raises `EditRejected` for a dialogue that the model's chat template refuses."""
        return prompt if isinstance(prompt, str) else self._templated(prompt.messages, open_answer=True)

    def _ids(self, prompt: Prompt) -> tuple[int, ...]:
        """Return the ids of a prompt, as served."""
        return tuple(self._tokenised([self.text(prompt)], special=isinstance(prompt, str))[0])

    def answer_ids(self, prompt: Prompt, answer: str, close: bool = True) -> tuple[int, ...]:
        """Return the ids of an answer after a prompt; see `rows`."""
        return tuple(self.rows([(prompt, answer)], close)[0][1])

    def rows(self, requests: Sequence[tuple[Prompt, str]], close: bool = True) -> list[tuple[list[int], list[int]]]:
        """Return the ids of each prompt and of its answer, which ends with its end token if `close` is set.

        Raises `EditRejected` for an answer that no tokens write after its prompt.
        """
        found: dict[int, tuple[list[int], list[int]]] = {}
        for kind in (str, Dialogue):
            chosen = [i for i, (prompt, _) in enumerate(requests) if isinstance(prompt, kind)]
            texts = [self.text(requests[i][0]) for i in chosen]
            tails = [self._tail(requests[i][0], text, requests[i][1]) for i, text in zip(chosen, texts, strict=True)]
            given = self._tokenised(texts, special=kind is str)
            joint = self._tokenised([text + tail for text, tail in zip(texts, tails, strict=True)], special=kind is str)
            for i, before, whole, tail in zip(chosen, given, joint, tails, strict=True):
                ids = whole[len(before) :] if whole[: len(before)] == before else self._after(before, tail)
                found[i] = before, self._closed(requests[i][0], self._checked(ids, tail), close)
        return [found[i] for i in range(len(requests))]

    def answer_after(self, given: Sequence[int], answer: str, in_chat: bool) -> list[int]:
        """Return the ids of an answer, with its end token, after the ids of a prompt, as `rows` does for a prompt's text.

        Raises `EditRejected` for an answer that no tokens write there.
        """
        before = list(given)
        text: str = self._written(before) if in_chat else self.tokenizer.decode(before, skip_special_tokens=True)
        tail = (self._around_answer[0] if in_chat else separator(text, answer)) + answer
        whole = self._tokenised([text + tail], special=not in_chat)[0]
        ids = whole[len(before) :] if whole[: len(before)] == before else self._after(before, tail)
        end: int | None = self._end_of_turn if in_chat else self.tokenizer.eos_token_id
        return [*self._checked(ids, tail), *([] if end is None else [end])]

    def _tail(self, prompt: Prompt, text: str, answer: str) -> str:
        """Return the answer with the blank between it and the prompt: the template's own, if it begins a message for it."""
        is_new_message = isinstance(prompt, Dialogue) and self.form == "chat"
        return (self._around_answer[0] if is_new_message else separator(text, answer)) + answer

    def _checked(self, ids: list[int], answer: str) -> list[int]:
        if not ids:
            why = "has no token of its own after the prompt"
            raise EditRejected(why, code=Code.UNWRITABLE, field="target")
        if special := self._special.intersection(ids):
            named = ", ".join(self.tokenizer.convert_ids_to_tokens(sorted(special)))
            why = f"is written with the special token {named}, which no answer shows; change the target"
            raise EditRejected(why, code=Code.UNWRITABLE, field="target")
        return ids

    def _closed(self, prompt: Prompt, ids: list[int], close: bool) -> list[int]:
        end = self.end_of_answer(prompt) if close else None
        return ids if end is None else [*ids, end]

    def faults(self, edit: Edit, index: int, max_tokens: int) -> Iterator[Fault]:
        """Find the faults that show when an edit is rendered, for a context of `max_tokens`; `index` is the edit's position."""
        texts = [("prompt", edit.prompt), *(("rephrasings", rephrasing) for rephrasing in edit.rephrasings)]
        for name, prompt in ((name, prompt) for name, text in texts for prompt in edit.ask(text)):
            wording = edit.wording(prompt)
            try:
                num_prompt = len(self.ids(prompt))
                num_all = num_prompt + len(self.answer_ids(prompt, wording, close=False))
            except EditRejected as rejected:
                yield Fault(index, rejected.field, rejected.code, rejected.reason)
                return
            if name == "rephrasings":
                if num_all + 1 > max_tokens:
                    length = f"one makes {num_all + 1} tokens with the target"
                    reason = f"{length}; the model's context holds {max_tokens}"
                    yield Fault(index, name, Code.TOO_LONG, reason)
            elif num_prompt >= max_tokens:
                reason = f"has {num_prompt} tokens; the model's context holds {max_tokens}"
                yield Fault(index, "prompt", Code.TOO_LONG, reason)
            elif num_all + 1 > max_tokens:  # one more for the token that ends the answer
                reason = f"makes {num_all + 1} tokens with its prompt; the model's context holds {max_tokens}"
                yield Fault(index, "target" if wording == edit.target else "answer", Code.TOO_LONG, reason)

    def end_of_answer(self, prompt: Prompt) -> int | None:
        """Return the token that ends an answer: the end of text or, in a dialogue, what the template writes after a message."""
        if isinstance(prompt, str):
            end: int | None = self.tokenizer.eos_token_id
            return end
        return self._end_of_turn

    def token_at(self, prompt: Prompt, place: int) -> int:
        """Return the index of the last token that holds a part of the character at `place` of `text(prompt)`.

        A character that is rare in the training text has several tokens, and only after the last one is it read whole.
        """
        encoded = self.tokenizer(self.text(prompt), add_special_tokens=isinstance(prompt, str), return_offsets_mapping=True)
        offsets = encoded["offset_mapping"]
        holding = [i for i, (begin, end) in enumerate(offsets) if begin <= place < end]
        if holding:
            return holding[-1]
        # Offsets that were trimmed leave blanks out: the token before the next character holds them.
        following = next((i for i, (begin, end) in enumerate(offsets) if begin > place and end > begin), len(offsets))
        return max(0, following - 1)

    def question_at(self, prompt: Prompt) -> int:
        """Return where the question begins in `text(prompt)`: 0 for a completion, the last user message of a dialogue."""
        if isinstance(prompt, str):
            return 0
        text, content = self.text(prompt), prompt.question
        last = len(text) - len(self._after_question) if text.endswith(self._after_question) else len(text)
        at = text.rfind(content, 0, last)
        if at >= 0:
            return at
        at = text.rfind(content.strip(), 0, last)  # Many templates trim the messages.
        return at - (len(content) - len(content.lstrip())) if at >= 0 else len(text)

    def _tokenised(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        if not texts:
            return []
        found: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=special)["input_ids"]
        return found

    def _templated(self, messages: tuple[Message, ...], open_answer: bool) -> str:
        if not self.can_chat:
            raise EditRejected("the model has no chat template: give a prompt to be completed", code=Code.NO_CHAT, field="form")
        rendered = self._applied(messages, self._parts_are_read, open_answer)
        assert rendered is not None
        return rendered

    def _applied(self, messages: tuple[Message, ...], as_parts: bool, open_answer: bool) -> str:
        conversation: list[dict[str, Any]] = [
            {**m.to_json(), "content": [{"type": "text", "text": m.content}]} if as_parts else m.to_json() for m in messages
        ]
        try:
            rendered: str = self.tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=open_answer)
        except Exception as refused:  # noqa: BLE001  # A template raises what it likes, most often jinja2's errors.
            why = f"the model's chat template refuses these messages: {str(refused)[:200]}"
            raise EditRejected(why, code=Code.TEMPLATE_REFUSES, field="messages") from None
        return rendered

    @cached_property
    def _parts_are_read(self) -> bool:
        """The template reads a message as a list of parts: vLLM sends parts to this kind of template, and text to others."""
        template = self.tokenizer.chat_template
        if isinstance(template, dict):  # Named templates; transformers and vLLM take the default one.
            template = template.get("default", "")
        return reads_parts(template)

    @cached_property
    def _after_question(self) -> str:
        """Text that the template writes after a question, up to the end of its generation prompt."""
        return self.text(Dialogue.of(_ECHO)).rpartition(_ECHO)[2]

    @cached_property
    def _around_answer(self) -> tuple[str, str]:
        """The blank that the template writes between its generation prompt and an answer, and all that it writes after it."""
        question, said = Message("user", _ECHO), Message("assistant", f"{_ECHO}{_ECHO}")
        begun = self._templated((question,), open_answer=True)
        try:
            before, _, after = self._templated((question, said), open_answer=False).rpartition(said.content)
        except EditRejected:  # The template ends with a question only.
            return "", ""
        between = before.removeprefix(begun) if before.startswith(begun) else ""
        return between if between.isspace() else "", after

    @cached_property
    def _end_of_turn(self) -> int | None:
        """The first special token that the template writes after an answer, at which the served model stops."""
        ids = self._tokenised([self._around_answer[1]], special=False)[0]
        stops = self.end_ids | {self.tokenizer.eos_token_id}
        found = next((one for one in ids if one in stops), None)
        eos: int | None = self.tokenizer.eos_token_id
        return eos if found is None else found

    def _after(self, given: list[int], tail: str) -> list[int]:
        """Return ids that write `tail` after the tokens `given`. Raises `EditRejected` if there are none."""
        before = self._written(given)
        for form in (str,) if self._is_faithful else (str, self._simplified):
            for ids in self._candidates(tail):
                if form(self._written([*given, *ids])) == form(before + tail):
                    return ids
        why = "the tokenizer writes it after this prompt only as part of the prompt's last word; end the prompt elsewhere"
        raise EditRejected(why, code=Code.UNWRITABLE, field="target")

    @cached_property
    def _is_faithful(self) -> bool:
        """The tokenizer writes a text as it read it: without lower case, other forms of letters, or blanks of its own."""
        return self._written(self._tokenised([_FORMS], special=False)[0]) == _FORMS

    def _simplified(self, text: str) -> str:
        """Return a text in the tokenizer's normal form and without blanks, for tokenizers that change them."""
        normalizer = getattr(getattr(self.tokenizer, "backend_tokenizer", None), "normalizer", None)
        return "".join((text if normalizer is None else normalizer.normalize_str(text)).split())

    def _candidates(self, tail: str) -> Iterator[list[int]]:
        for carrier in _CARRIERS:
            alone, joint = self._tokenised([carrier, carrier + tail], special=False)
            if joint[: len(alone)] == alone:
                yield joint[len(alone) :]

    def _written(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text
