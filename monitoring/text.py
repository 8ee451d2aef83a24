"""What a text is like, in numbers: measures of prompts, chunk by chunk.

    prompt_chars prompt_words   length [characters, words between white space]
    token_count                 length under the student's tokenizer, without special tokens [tokens]
    unknown_rate                share of the words that the tokenizer does not know [0-1], see `unknown_words`
    type_token_ratio            distinct words over words, case folded [0-1]
    char_entropy                Shannon entropy of the characters [bit a character]
    zlib_ratio                  bytes after zlib over bytes before: low for repetition, above 1 for very short texts
    non_ascii_share             share of the characters [0-1]
    topic                       one of 16 fixed groups of vocabulary, "00" to "15"

Nothing here is fitted: only the tokenizer, which is the student's own, can make two measurements differ.
"""

import hashlib
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from monitoring.errors import InputError

Tokenizer: TypeAlias = Any  # a tokenizers.Tokenizer (it ships no usable types)
Numbers: TypeAlias = npt.NDArray[np.float64]

TOPICS: Final = 16
DIMENSIONS: Final = 64  # of the hashed vector
TOKENIZED: Final = ("token_count", "unknown_rate")
NUMBERS: Final = (
    *("prompt_chars", "prompt_words", "token_count", "unknown_rate"),
    *("type_token_ratio", "char_entropy", "zlib_ratio", "non_ascii_share"),
)
_CHUNK = 2048  # texts whose words are held at once
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # a token that stands for one byte of what is not in the vocabulary


def load_tokenizer(checkpoint: str | Path) -> Tokenizer:
    """Return the tokenizer of a checkpoint folder, from its tokenizer.json, without truncation or padding.

    Raises InputError when the file is missing or no tokenizer.
    """
    from tokenizers import Tokenizer as Backend  # not needed by those who compare tables of numbers

    path = Path(checkpoint) / "tokenizer.json"
    try:
        tokenizer = Backend.from_str(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the tokenizer {path}: {error.strerror}; export the checkpoint again") from error
    except Exception as error:  # the library raises bare Exceptions
        raise InputError(f"{path} is no tokenizer ({error}): export the checkpoint again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def measure(texts: pd.Series, names: Sequence[str], tokenizer: Tokenizer | None, max_pieces: int) -> dict[str, Numbers]:
    """Return the named numeric measures of each text; NaN for None, and where a text has no characters or words.

    Without a tokenizer those that need one are NaN throughout. `max_pieces` is what `unknown_words` goes by.
    """
    made = {name: np.full(len(texts), np.nan) for name in names}
    for at, chunk in _chunks(texts):
        words = [text.split() for text in chunk]
        for name in names:
            made[name][at] = _measure(name, chunk, words, tokenizer, max_pieces)
    return made


def topics(texts: pd.Series) -> list[str | None]:
    """Return the topic of each text; None for None and for a text without words.

    Its words are hashed (crc32) into a vector of 64 signed counts; the topic is the nearest by angle of 16 fixed
    directions. Nothing is fitted: the same text has the same topic on any machine, under any profile.
    """
    made: list[str | None] = [None] * len(texts)
    for at, chunk in _chunks(texts):
        vectors = _hashed([text.lower().split() for text in chunk])
        nearest = np.argmax(vectors @ _centroids().T, axis=1)
        for row, topic, empty in zip(at, nearest, (vectors == 0).all(axis=1).tolist(), strict=True):
            made[int(row)] = None if empty else f"{topic:02d}"
    return made


def unknown_words(words: Sequence[str], tokenizer: Tokenizer, max_pieces: int) -> npt.NDArray[np.bool_]:
    """Return which words the tokenizer does not know: they have a token for unknown text, or for a bare byte.

    A tokenizer that spells everything (byte-level, or without a token for unknown text) does not know a word that
    it splits into more than `max_pieces` tokens.
    """
    alone, unknown, spells = _unknown_tokens(tokenizer)
    encoded = tokenizer.encode_batch_fast([alone + word for word in words], add_special_tokens=False)
    if spells:
        return np.array([len(one) > max_pieces for one in encoded], bool)
    return np.array([not unknown.isdisjoint(one.ids) for one in encoded], bool)


def _unknown_tokens(tokenizer: Tokenizer) -> tuple[str, frozenset[int], bool]:
    """Return what stands before a word inside a text, the ids for unknown text, and whether words are spelt instead."""
    parts = json.loads(tokenizer.to_str())
    model = parts["model"]
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    ids = {vocabulary[str(model["unk_token"])]} if model.get("unk_token") in vocabulary else set()
    if model.get("unk_id") is not None:
        ids.add(int(model["unk_id"]))
    if model.get("byte_fallback"):
        ids.update(number for token, number in vocabulary.items() if _BYTE.fullmatch(token))
    byte_level = any('"ByteLevel"' in json.dumps(parts.get(part)) for part in ("normalizer", "pre_tokenizer"))
    return " " if byte_level else "", frozenset(ids), byte_level or not ids


def _chunks(texts: pd.Series) -> Iterator[tuple[npt.NDArray[np.intp], list[str]]]:
    present = np.flatnonzero(texts.notna().to_numpy())
    for start in range(0, len(present), _CHUNK):
        at = present[start : start + _CHUNK]
        # Half of a surrogate pair can be neither encoded nor tokenized.
        yield at, [str(text).encode("utf-8", "replace").decode() for text in texts.iloc[at]]


def _measure(
    name: str, texts: list[str], words: list[list[str]], tokenizer: Tokenizer | None, max_pieces: int
) -> Numbers | list[float] | list[int] | float:
    match name:
        case "prompt_chars":
            return [len(text) for text in texts]
        case "prompt_words":
            return [len(some) for some in words]
        case "type_token_ratio":
            distinct = [len(set(text.lower().split())) for text in texts]
            return _ratio(distinct, [len(some) for some in words])
        case "char_entropy":
            return [_entropy(text) for text in texts]
        case "zlib_ratio":
            encoded = [text.encode() for text in texts]
            return _ratio([len(zlib.compress(one)) for one in encoded], [len(one) for one in encoded])
        case "non_ascii_share":
            others = [0 if text.isascii() else len(text) - len(text.encode("ascii", "ignore")) for text in texts]
            return _ratio(others, [len(text) for text in texts])
    if tokenizer is None:
        return np.nan
    if name == "token_count":
        return [len(one) for one in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    distinct_words, which = _distinct(words)
    unknown = unknown_words(distinct_words, tokenizer, max_pieces)
    rows = _rows(words)
    counts = np.bincount(rows, weights=unknown[which], minlength=len(words))
    return _ratio(counts, [len(some) for some in words])


def _ratio(above: npt.ArrayLike, below: list[int]) -> Numbers:
    """Divide row by row; NaN where there is nothing to divide by."""
    divisor = np.array(below, np.float64)
    divisor[divisor == 0] = np.nan
    return np.asarray(above, np.float64) / divisor


def _entropy(text: str) -> float:
    n = len(text)
    if not n:
        return np.nan
    return max(0.0, math.log2(n) - sum(count * math.log2(count) for count in Counter(text).values()) / n)


def _distinct(words: list[list[str]]) -> tuple[list[str], npt.NDArray[np.intp]]:
    """Return the distinct words, and which of them each word of the texts is."""
    which, distinct = pd.factorize(np.array(list(chain.from_iterable(words)), object))
    return [str(word) for word in distinct], which


def _rows(words: list[list[str]]) -> npt.NDArray[np.intp]:
    return np.repeat(np.arange(len(words)), [len(some) for some in words])


def _hashed(words: list[list[str]]) -> Numbers:
    """Return a row of 64 signed counts for each list of words."""
    distinct, which = _distinct(words)
    hashes = np.array([zlib.crc32(word.encode()) for word in distinct], np.int64)
    cells = _rows(words) * DIMENSIONS + (hashes % DIMENSIONS)[which]
    signs = np.where(hashes >> 31, 1.0, -1.0)[which]
    counts = np.bincount(cells, signs, len(words) * DIMENSIONS).astype(np.float64)
    return counts.reshape(len(words), DIMENSIONS)


def _centroids() -> Numbers:
    """Return 16 directions of length 1 that are the same with every version of every library."""
    content = hashlib.shake_256(b"redistill topics").digest(TOPICS * DIMENSIONS)
    drawn = np.frombuffer(content, np.uint8).reshape(TOPICS, DIMENSIONS) - 127.5
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), np.float64)
