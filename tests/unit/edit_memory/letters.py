"""A tokenizer of single characters."""

from __future__ import annotations


class Letters:
    """A tokenizer of single characters, so that a text is read back as it was written."""

    all_special_ids: tuple[int, ...] = ()
    pad_token_id, eos_token_id = 0, None

    def __init__(self, template: str) -> None:
        self.chat_template = template

    def __call__(self, text: str | list[str], add_special_tokens: bool = True) -> dict[str, object]:
        one = [[ord(c) for c in each] for each in ([text] if isinstance(text, str) else text)]
        return {"input_ids": one[0] if isinstance(text, str) else one}

    def decode(self, ids: list[int], **_: object) -> str:
        return "".join(map(chr, ids))

    def apply_chat_template(self, conversation: list[dict[str, str]], tokenize: bool, add_generation_prompt: bool) -> str:
        from transformers.utils.chat_template_utils import render_jinja_template

        return str(render_jinja_template(conversations=[conversation], chat_template=self.chat_template)[0][0])
