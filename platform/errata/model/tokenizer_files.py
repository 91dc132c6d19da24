"""The tokenizer and the chat template of a checkpoint, judged before a weight is read.

A `tokenizer.json` is read by the library that transformers reads it with, which takes a fraction of a second. Only where a
folder has other files is transformers asked to make a tokenizer out of them, because its import takes seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from errata.model.json_file import read_json
from errata.text.templates import refusal

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
TEKKEN = "tekken.json"
_NEEDED = "Errata needs one that tells which characters each token stands for (a `tokenizer.json`)"
FAST, SETTINGS, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
_PROBE = "Rome is old."


def check_tokenizer_files(folder: Path) -> None:
    """Raise `ValueError` if the folder has no tokenizer, only one that Errata cannot use, or a broken chat template."""
    settings = read_json(folder / SETTINGS) if (folder / SETTINGS).exists() else {}
    if (folder / FAST).exists():
        _check_fast(folder)
    elif any((folder / name).exists() for name in TOKENIZERS):
        _check_made(folder)
    elif (folder / TEKKEN).exists():
        raise ValueError(_unusable(folder, f"mistral-common's alone ({TEKKEN})"))
    else:
        raise ValueError(f"{folder} has no tokenizer (tokenizer.json): copy the model's own there")
    _check_template(folder, settings)


def _check_fast(folder: Path) -> None:
    from tokenizers import Tokenizer

    if lost := {"model", "added_tokens"} - set(read_json(folder / FAST)):
        raise ValueError(_unusable(folder, f"damaged ({FAST} has no field {', '.join(sorted(lost))})"))
    try:
        found = Tokenizer.from_file(str(folder / FAST)).encode(_PROBE).ids
    except Exception as wrong:  # noqa: BLE001  # This library raises no narrower type.
        raise ValueError(_unusable(folder, f"damaged ({FAST}: {_short(wrong)})")) from None
    if not found:
        raise ValueError(_unusable(folder, f"{FAST} (it gives no token for {_PROBE!r})"))


def _check_made(folder: Path) -> None:
    """Let transformers make a tokenizer of files other than `tokenizer.json`, and check it."""
    from transformers import AutoTokenizer

    try:
        made = AutoTokenizer.from_pretrained(str(folder))
    except Exception as wrong:  # noqa: BLE001  # Each kind of tokenizer raises what it likes.
        there = ", ".join(name for name in TOKENIZERS if (folder / name).exists())
        raise ValueError(_unusable(folder, f"{there} alone, of which transformers makes none ({_short(wrong)})")) from None
    check_tokenizer(made, folder)


def _check_template(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a chat template that does not render a question."""
    named = settings.get("chat_template")
    if (folder / TEMPLATE).exists():
        try:
            template = (folder / TEMPLATE).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{folder / TEMPLATE} is not UTF-8 text: copy the model's own there") from None
    elif isinstance(named, list):  # Named templates; transformers and vLLM take the default one.
        template = next((str(one.get("template")) for one in named if one.get("name") == "default"), "")
    else:
        template = named if isinstance(named, str) else ""
    tokens = {name: token for name in SPECIAL if (token := _text_of(settings.get(name))) is not None}
    if template and (why := refusal(template, tokens)):
        where = TEMPLATE if (folder / TEMPLATE).exists() else SETTINGS
        raise ValueError(
            f"the chat template in {folder / where} renders no question ({why}): copy the model's own there, or remove it, if "
            "the model is only to complete texts"
        )


def _text_of(token: Any) -> str | None:
    found = token.get("content") if isinstance(token, Mapping) else token
    return found if isinstance(found, str) else None


def _short(wrong: Exception) -> str:
    return " ".join(str(wrong).split())[:160]


def tokenizer_options(folder: str | Path) -> dict[str, Any]:
    """Return the options of `AutoTokenizer`: of a folder with both, it may take mistral-common's, which has no offsets."""
    has_both = all((Path(folder) / name).exists() for name in (TEKKEN, "tokenizer.json"))
    return {"mistral_format": False} if has_both else {}


def check_tokenizer(tokenizer: Any, where: str | Path) -> None:
    """Raise `ValueError` if the tokenizer cannot encode with character offsets, encode nothing, or decode."""
    try:
        found = tokenizer(_PROBE, return_offsets_mapping=True)
        ids, offsets = found["input_ids"], found["offset_mapping"]
        tokenizer.decode(ids)
        tokenizer("", return_offsets_mapping=True)
    except (NotImplementedError, ValueError, TypeError, KeyError, IndexError, AttributeError) as wrong:
        reason = str(wrong).strip().partition("\n")[0]
        raise ValueError(_unusable(where, f"{type(tokenizer).__name__} ({reason})")) from None
    if not ids or len(ids) != len(offsets):
        raise ValueError(_unusable(where, f"{type(tokenizer).__name__} (it gives {len(ids)} tokens, {len(offsets)} offsets)"))


def _unusable(where: str | Path, found: str) -> str:
    return (
        f"the tokenizer of {where} is {found}, and {_NEEDED}: copy tokenizer.json and tokenizer_config.json of the same model "
        "there, from its checkpoint in the transformers format (docs/models.md)"
    )
