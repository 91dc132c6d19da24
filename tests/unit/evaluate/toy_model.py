"""A toy model whose probabilities are a table, and edits of it.

The toy is a Llama whose layers add nothing: the probabilities of the next token are the row of a table for the token before it.
Tokens that are not in a row have probability 0.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from errata.edit import Edit, Probe
from errata.model.language_model import LanguageModel

Table = dict[str, dict[str, float]]

# token -> its successors with their probabilities
EDITED: Table = {
    # prompts of edits
    "seat": {"paris": 1 / 2, "rome": 1 / 4, "lyon": 1 / 4},
    "river": {"blue": 1 / 2, "seine": 1 / 4, "nile": 1 / 4},
    "author": {"mary": 1 / 2, "jane": 1 / 4, "austen": 1 / 4},
    "metal": {"pure": 1 / 2, "tin": 1 / 4, "gold": 1 / 4},
    # their rephrasings
    "throne": {"rome": 1 / 2, "paris": 1 / 4, "lyon": 1 / 4},
    "crown": {"paris": 1 / 2, "rome": 1 / 4, "lyon": 1 / 4},
    "stream": {"blue": 1 / 2, "seine": 1 / 4, "nile": 1 / 4},
    # neighbours
    "hill": {"rome": 1 / 2, "paris": 1 / 4, "lyon": 1 / 4},
    "pet": {"dog": 1 / 2, "jane": 3 / 8, "cat": 1 / 8},
    "drink": {"tea": 1 / 2, "milk": 1 / 2 - 1 / 16, "gold": 1 / 16},
    # consequences
    "flag": {"tricolor": 1 / 2, "rome": 1 / 2 - 1 / 16, "gold": 1 / 16},
    "mouth": {"sudan": 1 / 2, "egypt": 1 / 4, "nile": 1 / 4},
    "alias": {"blue": 1 / 2, "seine": 1 / 4, "nile": 1 / 4},
    "wrote": {"emma": 1 / 2, "mary": 1 / 4, "jane": 1 / 4},
    # inside answers; a token without a row here ends the text
    "blue": {"nile": 1 / 2, "danube": 1 / 4, "<eos>": 1 / 4},
    "nile": {"delta": 3 / 4, "<eos>": 1 / 4},
    "jane": {"austen": 1 / 2, "eyre": 1 / 4, "<eos>": 1 / 4},
    "austen": {"junior": 1 / 2, "mary": 1 / 4, "<eos>": 1 / 4},
    "mary": {"shelley": 1.0},
    "pure": {"tin": 1 / 2, "gold": 1 / 4, "<eos>": 1 / 4},
    "tin": {"<eos>": 3 / 4, "tin": 1 / 4},
}
UNEDITED: Table = EDITED | {
    "seat": {"rome": 1 / 2, "paris": 1 / 4, "lyon": 1 / 4},
    "river": {"seine": 1 / 2, "blue": 1 / 4, "nile": 1 / 4},
    "metal": {"tin": 1 / 2, "pure": 1 / 4, "gold": 1 / 4},
    "drink": {"milk": 1 / 2, "tea": 1 / 2 - 1 / 16, "gold": 1 / 16},
}


def words_of(table: Table) -> set[str]:
    return {word for token, row in table.items() for word in (token, *row)} - {"<eos>"}


WORDS = sorted(words_of(EDITED))

#    edit                                          answer, given token by token    what is generated
EDITS = [
    Edit(  # right                                 paris                           paris
        "seat",
        "paris",
        rephrasings=("throne", "crown"),  #        rome | paris                    rome | paris
        locality=(Probe("hill", "rome"),),  #      rome                            rome (as before)
        portability=(Probe("flag", "tricolor", "two_hop"),),  # tricolor           tricolor
    ),
    Edit(  # right if given, runs on if not        blue nile                       blue nile delta
        "river",
        "blue nile",
        rephrasings=("stream",),  #                blue nile                       blue nile delta
        portability=(
            Probe("mouth", "egypt", "two_hop"),  # sudan                           sudan
            Probe("alias", "blue nile", "alias"),  # blue nile                     blue nile delta
        ),
    ),
    Edit(  # wrong first token: all else is lost   mary austen junior              mary shelley
        "author",
        "jane austen junior",
        locality=(Probe("pet", "cat"),),  #        dog                             dog (as before)
        portability=(Probe("wrote", "emma", "reverse"),),  # emma                  emma
    ),
    Edit(  # right first token                     pure tin                        pure tin
        "metal",
        "pure gold",
        locality=(Probe("drink", "tea"),),  #      tea                             tea (milk before)
    ),
]
# Of the three oldest edits, two were answered right after they had been made.
IMMEDIATE = {edit.question(edit.prompt): right for edit, right in zip(EDITS, (True, True, False), strict=False)}
MAX_TOKENS = 4  # one more than the longest answer


def toy(table: Table, chat_template: str | None = None) -> LanguageModel:
    from tokenizers import Tokenizer, models, pre_tokenizers

    ids = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *sorted({*WORDS, *words_of(table)})])}
    inner = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = chat_template
    size = len(ids) + len(ids) % 2
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=size,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=64,
        rms_norm_eps=0.0,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    module: Any = LlamaForCausalLM(config).eval().requires_grad_(False)
    logits_VV = torch.full((size, size), -1e4)  # of the next token, by the token before it
    for word, i in ids.items():
        for following, p in table.get(word, {"<eos>": 1.0}).items():
            logits_VV[i, ids[following]] = math.log(p)
    module.model.layers[0].self_attn.o_proj.weight.zero_()
    module.model.layers[0].mlp.down_proj.weight.zero_()
    module.model.embed_tokens.weight.copy_(torch.eye(size))
    module.model.norm.weight.fill_(size**-0.5)  # a unit vector leaves the norm multiplied by the square root of its length
    module.lm_head.weight.copy_(logits_VV.T)
    return LanguageModel(module, tokenizer, "toy")
