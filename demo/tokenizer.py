"""Trains the demos' tokenizer: byte-level BPE with the prompt format as its chat template."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, ANSWER = "<|pad|>", "<|bos|>", "<|eos|>", "<|answer|>"
# The question as it is, then the token after which the model speaks; the answer ends with EOS.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}" + EOS + "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}" + ANSWER + "{% endif %}"
)


def train_tokenizer(
    texts: Sequence[str], answers: Iterable[str], vocab_size: int, max_length: int = 512
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of `vocab_size` tokens on texts and on every answer there will ever be.

    The answers are mixed in as often as one in ten texts, so that each is spelt in few tokens however rare it is in
    the texts. Byte-level: no text is unknown, and decoding gives back what was encoded.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS, ANSWER],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    known = sorted(set(answers))
    repeats = len(texts) // (10 * max(1, len(known))) + 1
    bpe.train_from_iterator([*texts, *(known * repeats)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[ANSWER],
        padding_side="right",
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
