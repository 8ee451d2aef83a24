"""Text -> token ids, by the tokenizer and chat template that travel in the checkpoint.

Teacher, trainer, scorer and server all read the format from the checkpoint: nothing here has one of its own.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray

from distill.checkpoint import resolve
from distill.errors import InputError

Tokenizer: TypeAlias = Any  # a fast transformers tokenizer (transformers ships no usable types)

IDENTITY = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@dataclass(frozen=True)
class Encoded:
    """Token ids of prompts, ready for the model."""

    ids: list[NDArray[np.int32]]  # one array a prompt, never empty
    truncated: int  # prompts that were too long and lost the beginning of their text


def load_tokenizer(checkpoint: str | Path) -> Tokenizer:
    """Return a checkpoint's tokenizer, with a chat template in any case.

    Raises InputError when the checkpoint is missing or its tokenizer is no fast one.
    """
    folder = resolve(checkpoint, "checkpoint")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
    except Exception as error:  # a damaged file makes it raise anything, bare Exception too
        reason = " ".join(str(error).split())
        raise InputError(f"tokenizer of {str(checkpoint)!r} cannot be read ({reason}): export it again") from error
    if not tokenizer.is_fast:
        raise InputError(f"tokenizer of {str(checkpoint)!r} is no fast one: convert it to a tokenizer.json")
    ensure_chat_template(tokenizer)
    try:
        frame(tokenizer)
    except TemplateError as error:
        raise InputError(
            f"the chat template of {str(checkpoint)!r} cannot be used ({error}): export the tokenizer again"
        ) from error
    return tokenizer


def ensure_chat_template(tokenizer: Tokenizer) -> None:
    """Give a tokenizer without a chat template the one that leaves the text as it is.

    A tokenizer that itself begins every text with its bos token keeps doing so.
    """
    if tokenizer.chat_template is None:
        begins_with_bos = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
        tokenizer.chat_template = ("{{ bos_token }}" if begins_with_bos else "") + IDENTITY


def encode(tokenizer: Tokenizer, prompts: Sequence[str], max_tokens: int) -> Encoded:
    """Return each prompt as one user turn, up to where the answer begins, in at most `max_tokens` tokens.

    A longer one keeps what the template puts before and after the text and loses the beginning of the text. A
    prompt without any token becomes the bos (else eos) token. Raises InputError when the template alone fills
    `max_tokens`.
    """
    if not prompts:
        return Encoded([], 0)
    head, tail = frame(tokenizer)
    if head + tail >= max_tokens:
        raise InputError(
            f"max_prompt_tokens = {max_tokens} leaves no room for a prompt: the chat template of "
            f"{tokenizer.name_or_path!r} alone takes {head + tail} tokens; raise it"
        )
    rows = _tokens(tokenizer, prompts)
    truncated = 0
    for at, row in enumerate(rows):
        if len(row) > max_tokens:
            rows[at] = np.concatenate([row[:head], row[len(row) - (max_tokens - head) :]])
            truncated += 1
        elif not len(row):
            rows[at] = _start(tokenizer)
    return Encoded(rows, truncated)


def _tokens(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[NDArray[np.int32]]:
    # Rendered as text first: one call of the Rust tokenizer for all rows is many times faster than one a row.
    turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
    texts = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    rows = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return [np.asarray(row, np.int32) for row in rows]


def frame(tokenizer: Tokenizer) -> tuple[int, int]:
    """Return how many tokens the template puts before and after the text: what two texts have in common."""
    one, other = (row.tolist() for row in _tokens(tokenizer, ["0", "x"]))
    return _common(one, other), _common(one[::-1], other[::-1])


def _common(one: list[int], other: list[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _start(tokenizer: Tokenizer) -> NDArray[np.int32]:
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return np.array([token], np.int32)
    raise InputError(
        f"a prompt has no token at all, and the tokenizer of {tokenizer.name_or_path!r} has neither bos nor "
        "eos to stand for it: remove prompts that are only white space"
    )


def fingerprint(tokenizer: Tokenizer) -> str:
    """Return SHA-256 (hex) of all that decides which token ids a text becomes: equal means exchangeable ids.

    The chat template is not part of it (it is text), nor the pad token (no sequence contains it).
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    parts = {name: backend.get(name) for name in ("normalizer", "pre_tokenizer", "model", "added_tokens")}
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id]
    text = json.dumps([parts, special], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """Return one more than the largest token id (a model's output layer is often padded beyond it)."""
    return int(max(tokenizer.get_vocab().values())) + 1
