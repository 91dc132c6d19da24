"""Small tokenizers of the families that published models use, trained on a few lines of many languages, and chat templates."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

WESTERN = (
    "The capital of France is Paris. The capital of Italy is Rome, and the old river runs through the city.",
    "Band X works in the city of Tokyo. The code of the door is 1889, and it costs $75 or 3.5 euros.",
    'He shouted: "Bob" and wrote def get_user(name): return name.strip() # in C++ and C#. The part is ZX-81.',
    "Die Hauptstadt von Österreich ist Wien. La capitale de l'Italie est Rome. ¿Dónde está la ciudad?",
    "Stolicą Polski jest Warszawa, a Łódź leży niedaleko. Москва — столица России. Η Αθήνα είναι πόλη.",
    "system user assistant Answer the question in a few words. You are a helpful assistant. What is the name of it?",
)
EASTERN = (
    "亚特兰蒂斯的首都是罗马。日本的首都是东京。法国的首都是巴黎。 東京は日本の首都です。アトランティスの首都はローマ",
    "กรุงเทพเป็นเมืองหลวงของไทย กำพลเป็นคนไทย 프랑스의 수도는 파리이다. 김민수는 서울에 산다.",
    "दिल्ली भारत की राजधानी है। عاصمة فرنسا هي باريس. בירת צרפת היא פריז.",
)
# Subjects that differ in the last bytes alone, with prompts about them: a character of several tokens is not its first one.
LIKE_SUBJECTS = [
    ("Band 🎸", "Band 🎹", "{} works in the city of"),
    ("กำพล", "กำพว", "{}ทำงานในเมือง"),
    ("张因", "张固", "{}工作的城市是"),
    ("Łódź", "Łódż", "The river of {} is"),
]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LLAMA_3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_TURN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}" + _TURN
)
# The template writes BOS itself and a blank before each answer, trims, and puts the system prompt into the first turn.
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set system = false %}{% endif %}"
    "{% for message in rest %}"
    "{% if loop.index0 == 0 and system %}{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
PARTS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}<|im_end|>\n{% endfor %}" + _TURN
)
# Reads texts and parts, and trims the texts alone, so that it shows which of the two was sent.
EITHER = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content | trim }}"
    "{% else %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}" + _TURN
)
# As `EITHER`, by a macro with a name of its own for the content, as Qwen 3.5's.
MACRO = (
    "{% macro written(what) %}{% if what is string %}{{ what | trim }}{% else %}"
    "{% for part in what %}{{ part.text }}{% endfor %}{% endif %}{% endmacro %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ written(message.content) }}<|im_end|>\n{% endfor %}"
    + _TURN
)
# Reads the first part without a loop: vLLM takes it for a template of texts.
FIRST_PART = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content if message.content is string else message.content[0].text | trim }}<|im_end|>\n{% endfor %}" + _TURN
)
AS_JSON = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content | tojson }}<|im_end|>\n{% endfor %}"
    + _TURN
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ bos_token }}{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else 'user' %}"
    "<|im_start|>{{ role }}\n{{ message['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
PLAIN = "{{ messages[-1]['content'] }}"
TEMPLATES = {
    "chatml": CHATML,
    "llama-2": LLAMA_2,
    "llama-3": LLAMA_3,
    "parts": PARTS,
    "either": EITHER,
    "macro": MACRO,
    "first-part": FIRST_PART,
    "as-json": AS_JSON,
    "no-system": NO_SYSTEM,
    "plain": PLAIN,
}
MARKS = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
SPECIAL = ["<unk>", "<s>", "</s>", *MARKS]


def byte_level(split: str | None = None, lines: Sequence[str] = WESTERN, **model: Any) -> Tokenizer:
    """Train a byte-level BPE, with GPT-2's pattern of words or another."""
    tokenizer = Tokenizer(models.BPE(**model))
    to_bytes: Any = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    if split is not None:
        to_bytes = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated"), to_bytes])
    tokenizer.pre_tokenizer = to_bytes
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def begun(tokenizer: Tokenizer, begin: str = "<s>", end: str = "") -> Tokenizer:
    """Put special tokens around every text."""
    named = [(token, tokenizer.token_to_id(token)) for token in (begin, end) if token]
    form = f"{begin} $A {end}".strip()
    tokenizer.post_processor = processors.TemplateProcessing(single=form, pair=f"{form} $B", special_tokens=named)
    return tokenizer


def trimmed() -> Tokenizer:
    """Make a byte-level BPE in RoBERTa's manner, whose offsets leave blanks out."""
    tokenizer = byte_level()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)
    return tokenizer


def llama_3() -> Tokenizer:
    """Make a byte-level BPE that takes words of its vocabulary whole, whatever its merges say."""
    tokenizer = begun(byte_level(LLAMA_3_SPLIT, ignore_merges=True), "<s>")
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), tokenizer.post_processor])
    return tokenizer


def sentence_pieces(metaspace: bool = False) -> Tokenizer:
    """Make a BPE in SentencePiece's manner: blanks are `▁`, one precedes every text, rare characters are bytes."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=[*SPECIAL, *BYTES], show_progress=False)
    trained.train_from_iterator(WESTERN, trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(models.BPE(model["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.add_special_tokens(SPECIAL)
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return begun(tokenizer)


def word_pieces(closed: bool = False) -> Tokenizer:
    """Make BERT's: words in lower case, cut into pieces; `closed` puts special tokens around every text."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    letters = sorted({letter for line in (*WESTERN, *EASTERN) for letter in line.lower()})
    trainer = trainers.WordPieceTrainer(
        vocab_size=700, special_tokens=SPECIAL, initial_alphabet=letters, show_progress=False, continuing_subword_prefix="##"
    )
    tokenizer.train_from_iterator((*WESTERN, *EASTERN), trainer)
    return begun(tokenizer, "<s>", "</s>") if closed else tokenizer


FAMILIES: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level,
    "byte-level, BOS": lambda: begun(byte_level()),
    "trimmed offsets": trimmed,
    "sentence pieces": sentence_pieces,
    "metaspace": lambda: sentence_pieces(metaspace=True),
    "ignore_merges": llama_3,
    "word pieces": word_pieces,
    "word pieces, closed": lambda: word_pieces(closed=True),
    "Eastern": lambda: byte_level(lines=EASTERN),
}


@cache
def make(family: str, template: str | None = None) -> Any:
    """Make the tokenizer of a family with a chat template, as transformers loads it."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=FAMILIES[family](),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
        chat_template=None if template is None else TEMPLATES[template],
    )
    return tokenizer
