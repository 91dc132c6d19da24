"""The small Llama that is trained on a corpus, and its tokenizer: whole words of a closed vocabulary, or byte-level BPE.

Suffixes of tensors: B sentences, S positions.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from errata.model.encoding import IGNORED, Encoded, answer_log_probs, answer_nll, encode
from errata.model.renderer import Renderer
from errata.testbed.corpus import Corpus
from errata.text.dialogue import Prompt

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
# The last message of a chat is the prompt, so that chat requests are answered like plain prompts.
CHAT_TEMPLATE = "{{ messages[-1]['content'] }}"


@dataclass(frozen=True)
class Shape:
    """Sizes of the Llama and of its training; `vocabulary_size` is used if the corpus has no closed vocabulary."""

    hidden: int = 256
    layers: int = 4
    intermediate: int = 768
    heads: int = 4
    max_tokens: int = 128
    train_steps: int = 300
    sentences_per_step: int = 256
    peak_lr: float = 2e-3
    vocabulary_size: int = 6144
    bf16: bool = False


def make_tokenizer(corpus: Corpus, shape: Shape) -> Any:
    """Make the tokenizer of a corpus: of whole words if its vocabulary is closed, otherwise a byte-level BPE."""
    from transformers import PreTrainedTokenizerFast

    words = corpus.words()
    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_pairs(corpus, shape.vocabulary_size) if words is None else _whole_words(words),
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        model_max_length=shape.max_tokens,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _whole_words(words: list[str]) -> Any:
    """Make a tokenizer with one token for each word, and letters for unknown words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = [*string.ascii_letters, *string.digits, *string.punctuation]
    pieces = [PAD, EOS, UNK, *words, *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNK, max_input_chars_per_word=100))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return tokenizer


def _byte_pairs(corpus: Corpus, vocabulary_size: int) -> Any:
    """Train a byte-level BPE on the corpus."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[PAD, EOS, UNK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*(f"{p} {a}" for p, a in corpus.sentences()), *corpus.plain_sentences()], trainer)
    return tokenizer


def make_model(shape: Shape, vocabulary_size: int, seed: int) -> Any:
    """Make the Llama with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.max_tokens,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def training_sentences(corpus: Corpus, tokenizer: Any, device: Any = "cpu") -> Encoded:
    """Encode facts and plain sentences with every token after the first as a label, and notes with those of their answers.

    A plain language-modelling loss would teach the wrong facts that notes state.
    """
    notes = corpus.notes()
    prompts, targets = zip(*corpus.sentences(), strict=True)
    plain = [sentence.rpartition(" ") for sentence in corpus.plain_sentences()]
    lines = [*prompts, *(p for p, _, _ in plain), *(p for p, _ in notes)]
    encoded = encode(Renderer(tokenizer), lines, [*targets, *(t for _, _, t in plain), *(t for _, t in notes)], device)
    labels_BS = encoded.input_ids_BS.masked_fill(~encoded.attention_mask_BS.bool(), IGNORED)
    labels_BS[:, 0] = IGNORED
    num_sentences = len(lines) - len(notes)
    labels_BS[num_sentences:] = encoded.labels_BS[num_sentences:]
    return Encoded(encoded.input_ids_BS, encoded.attention_mask_BS, labels_BS)


def learning_rate(step: int, shape: Shape) -> float:
    """Return the learning rate of a step: linear warm-up over a tenth of the steps, then cosine decay to zero."""
    warm_up = max(1, shape.train_steps // 10)
    if step < warm_up:
        return shape.peak_lr * (step + 1) / warm_up
    return shape.peak_lr * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, shape.train_steps - warm_up)))


@dataclass(frozen=True)
class Worker:
    """One of several data-parallel workers, which takes every `num_workers`-th sentence of a batch."""

    rank: int = 0
    num_workers: int = 1


@dataclass(frozen=True)
class TrainingState:
    """The state that a training resumes from."""

    optimizer: torch.optim.Optimizer
    first_step: int = 0


def train(
    model: Any,
    sentences: Encoded,
    shape: Shape,
    seed: int,
    state: TrainingState | None = None,
    worker: Worker | None = None,
    after_step: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Train `model` (plain, or wrapped for data parallelism) in place; `after_step` gets the step and its loss."""
    state, worker = state or TrainingState(make_optimizer(model)), worker or Worker()
    optimizer = state.optimizer
    model.train()
    num_sentences = len(sentences.input_ids_BS)
    lengths = sentences.attention_mask_BS.sum(1)
    num_parts = 4 if int(lengths.max()) > 2 * int(lengths.median()) else 1
    for step in range(state.first_step, shape.train_steps):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rows = torch.randint(num_sentences, (shape.sentences_per_step,), generator=generator)
        rows = rows[worker.rank :: worker.num_workers].to(lengths.device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, shape)
        optimizer.zero_grad()
        loss = _backward(model, sentences, rows, num_parts, shape.bf16)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        after_step(step, loss)
    model.eval()


def _backward(model: Any, sentences: Encoded, rows: Tensor, num_parts: int, bf16: bool) -> float:
    """Accumulate gradients of the mean loss per token, in parts of similar length to keep padding small; return the loss."""
    num_tokens = int((sentences.labels_BS[rows] != IGNORED).sum())
    total = 0.0
    for part in rows[sentences.attention_mask_BS[rows].sum(1).argsort(stable=True)].chunk(num_parts):
        batch = _cut(Encoded(*(t[part] for t in (sentences.input_ids_BS, sentences.attention_mask_BS, sentences.labels_BS))))
        with torch.autocast(rows.device.type, torch.bfloat16, enabled=bf16):
            loss = answer_nll(answer_log_probs(model, batch), batch).sum() / num_tokens
        loss.backward()
        total += float(loss.detach())
    return total


def make_optimizer(model: Any) -> torch.optim.Optimizer:
    """Make the AdamW of the training; `learning_rate` overrides its rate at each step."""
    return torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)


def _cut(encoded: Encoded) -> Encoded:
    """Cut the padding that all rows have in common."""
    width = int(encoded.attention_mask_BS.sum(1).max())
    return Encoded(encoded.input_ids_BS[:, :width], encoded.attention_mask_BS[:, :width], encoded.labels_BS[:, :width])


@torch.no_grad()
def recall(model: Any, tokenizer: Any, pairs: Sequence[tuple[Prompt, str]], limit: int = 2000) -> float:
    """Return the teacher-forced token accuracy on about `limit` of the (prompt, answer) pairs."""
    chosen = pairs[:: max(1, len(pairs) // limit)]
    right: list[Tensor] = []
    for start in range(0, len(chosen), 256):
        prompts, targets = zip(*chosen[start : start + 256], strict=True)
        encoded = encode(Renderer(tokenizer), prompts, targets, model.device, eos=False)
        right.append(answer_log_probs(model, encoded).argmax(-1) == encoded.targets_T)
    return float(torch.cat(right).float().mean())


def save(model: Any, tokenizer: Any, directory: str | Path) -> None:
    """Save model and tokenizer as a Hugging Face checkpoint."""
    model.save_pretrained(str(directory))
    tokenizer.save_pretrained(str(directory))
