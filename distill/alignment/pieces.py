"""Which characters of a text each token stands for: of tokens that a model said, and of a text that is tokenised.

A token may end inside a character (bytes of an emoji), stand for none (special tokens), or for one that is not in the
text as it was (normalising tokenizers): its end is then no border, or one somewhere in a gap.
"""

import json
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as Backend

from distill.prompts import Tokenizer

BROKEN = "\N{REPLACEMENT CHARACTER}"  # what a decoder makes of bytes that are no character yet
INSIDE = -1  # the end of a token that is no border between characters
_WINDOW = 16  # tokens that are decoded at once: no character has as many


class Spoken(NamedTuple):
    """A text and where in it the tokens end that a model said."""

    text: str
    ends: list[int]  # [characters], INSIDE where a token ends within a character


class Written(NamedTuple):
    """The tokens of a text and the borders between them."""

    ids: list[int]
    borders: list[
        tuple[int, int]
    ]  # [characters] after each token, from and to: a tokenizer may leave out what is between


def spoken(tokenizer: Tokenizer, ids: NDArray[np.int32]) -> Spoken:
    """Return the text of tokens and their ends, in time linear in the tokens.

    A character that the tokens do not finish is no part of the text. Where the pieces do not add up to what the
    tokenizer makes of all tokens together, only the end of the last one is a border.
    """
    backend, tokens = tokenizer.backend_tokenizer, ids.tolist()

    def decoded(first: int, last: int) -> str:
        return str(backend.decode(tokens[first:last], skip_special_tokens=True))

    whole, ends, pieces, done = str(tokenizer.decode(tokens, skip_special_tokens=True)), [], [], 0
    # tokens[first:read] are known, and decoded with what follows: alone many a token loses its space.
    first = read = 0
    known = ""
    for at in range(1, len(tokens) + 1):
        now = decoded(first, at)
        whole_yet = now.startswith(known) and not now.endswith(BROKEN)
        if not whole_yet and at - first < _WINDOW:
            ends.append(INSIDE)
            continue
        piece = now[len(known) :]
        pieces.append(piece)
        done += len(piece)
        ends.append(done if whole_yet else INSIDE)  # bytes that never become a character are taken as they are
        if piece or at - first >= _WINDOW:
            first = read if piece else at
            known = decoded(first, at)
        read = at
    finished = whole.rstrip(BROKEN) if ends and ends[-1] == INSIDE else whole
    if "".join(pieces) != finished:
        ends = [INSIDE] * (len(tokens) - 1) + [len(finished)] if tokens else []
    return Spoken(finished, ends)


def written(plain: Any, text: str) -> Written:
    """Return the tokens that a tokenizer makes of a text, without special ones, and the borders between them.

    plain: of `plain`. A border that is no border (from > to) lies inside a character.
    """
    encoding = plain.encode(text, add_special_tokens=False)
    starts = [*(start for start, _ in encoding.offsets), len(text)][1:]
    furthest, borders = 0, []
    for (_, end), start in zip(encoding.offsets, starts, strict=False):
        furthest = max(furthest, end)
        borders.append((furthest, start))
    return Written(encoding.ids, borders)


def plain(tokenizer: Tokenizer) -> Any:
    """Return what makes a tokenizer's tokens of a text, nothing else: offsets are whole, and all that it reads is text.

    A post-processor may cut spaces off the offsets; a text that reads like a special token would become one.
    """
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    made = Backend.from_str(json.dumps({**parts, "post_processor": None, "truncation": None, "padding": None}))
    made.encode_special_tokens = True
    return made
