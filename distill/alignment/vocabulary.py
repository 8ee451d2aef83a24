"""Which tokens of two tokenizers mean the same: those with the same text, and those that end an answer."""

import json
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from distill.alignment.pieces import BROKEN
from distill.prompts import Tokenizer, vocabulary_size

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # how tokenizers with byte fallback name a byte


def token_map(teacher: Tokenizer, student: Tokenizer, stops: Sequence[int], end: int) -> NDArray[np.int32]:
    """Return for each token of the teacher the student's token of the same text, -1 where there is none, (V,).

    Several may have one: a byte and the letter that it is, or all that end an answer (`stops`, the student's is `end`).
    """
    known: dict[bytes, int] = {}
    # Of two tokens with one text the tokenizer itself writes the one that is no byte.
    for at, text in sorted(enumerate(texts(student)), key=lambda pair: _is_byte(student, pair[0])):
        if text:
            known.setdefault(text, at)
    found = np.array([known.get(text, -1) if text else -1 for text in texts(teacher)], np.int32)
    found[[stop for stop in stops if stop < len(found)]] = end
    return found


def texts(tokenizer: Tokenizer) -> list[bytes]:
    """Return what each token writes after other text, in bytes; empty for special tokens and ids without one."""
    backend = tokenizer.backend_tokenizer
    kind = json.dumps(json.loads(backend.to_str())["decoder"])
    size = vocabulary_size(tokenizer)
    before = backend.encode("a", add_special_tokens=False).ids[-1:]  # alone many a token loses its space
    alone = backend.decode(before, skip_special_tokens=False)
    special = {at for at, token in backend.get_added_tokens_decoder().items() if token.special}
    found = backend.decode_batch([[*before, at] for at in range(size)], skip_special_tokens=False)
    table = _byte_table() if '"ByteLevel"' in kind else {}
    written = []
    for at, text in enumerate(found):
        token = backend.id_to_token(at)
        if token is None or at in special or not text.startswith(alone):
            written.append(b"")
        elif BROKEN not in text:
            written.append(text[len(alone) :].encode())
        elif table:
            written.append(bytes(table[letter] for letter in token) if all(map(table.__contains__, token)) else b"")
        else:
            byte = _BYTE.fullmatch(token)
            written.append(bytes.fromhex(byte[1]) if byte else b"")
    return written


def _is_byte(tokenizer: Tokenizer, at: int) -> bool:
    return bool(_BYTE.fullmatch(tokenizer.backend_tokenizer.id_to_token(at) or ""))


def _byte_table() -> dict[str, int]:
    """Return the byte that each letter of a byte-level vocabulary stands for (Radford et al. 2019, GPT-2)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}


def shared_share(mapped: NDArray[np.int32]) -> float:
    """Return which share of the teacher's vocabulary the student has too."""
    return float((mapped >= 0).mean())
