"""What an SGLang server replies -> an answer with its signal, or the reason why it cannot be one.

Shapes: T tokens of the answer, k kept tokens, D width of the states.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.errors import Failure
from distill.teachers.protocol import Signal

_MOST = 1e-4  # by which probabilities in float32 may add up to more than 1
_DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "int32": np.dtype("<i4"), "bfloat16": np.dtype("<u2")}
_LEAST = float(np.finfo(np.float16).min)


@dataclass(frozen=True)
class Asked:
    """What was sent, as far as a reply has to agree with it."""

    prompt_tokens: int
    max_new_tokens: int
    stops: Sequence[int]
    vocabulary: int  # ids of tokens are below it
    outputs: int  # of the model's last layer; those from `vocabulary` on are padding, which no text has
    top_k: int
    weights: str  # version that the server said it has


def answer_of(reply: Any, asked: Asked) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return answer and log-probabilities of its tokens, (T,) each; Failure for what cannot be right."""
    meta = _meta(reply, asked)
    answer = np.asarray(reply["output_ids"], np.int64)
    kept = np.array([entry[0] for entry in meta["output_token_logprobs"]], np.float32)
    ends = np.isin(answer, list(asked.stops))
    _require(0 < len(answer) <= asked.max_new_tokens, f"1 to {asked.max_new_tokens} tokens", f"{len(answer)}")
    _require(len(kept) == len(answer), f"{len(answer)} log-probabilities, one a token", f"{len(kept)}")
    _require(not ends[:-1].any(), "no stop token before the end", f"one at {ends.argmax()} of {len(answer)}")
    whole = ends[-1] or len(answer) == asked.max_new_tokens
    _require(whole, "an answer that ends with a stop token or at its longest", f"{meta.get('finish_reason')}")
    _inside(answer, asked.vocabulary)
    _probable(kept)
    return answer.astype(np.int32), kept


def topk_of(reply: Any, answer: NDArray[np.int32], asked: Asked, side: str = "output") -> Signal:
    """Return the likeliest k tokens of each answer token with the mass outside; Failure for what cannot be right.

    side: "output" for an answer that the server made, "input" for one that was sent. Padding that is among the
    likeliest counts as mass outside, of which another token in its place has an even share.
    """
    ids, logprobs = _kept(reply["meta_info"], (len(answer), asked.top_k), side)
    _inside(ids, asked.outputs)
    _probable(logprobs)
    _require(bool((np.diff(np.sort(ids, 1), axis=1) > 0).all()), "different tokens", "one of them twice")
    mass = np.exp(logprobs.astype(np.float64)).sum(1)
    _require(mass.max() <= 1 + _MOST, f"probabilities that add up to at most 1 + {_MOST}", f"{mass.max()}")
    if (ids >= asked.vocabulary).any():
        ids, logprobs = _without_padding(ids, logprobs, asked)
        mass = np.exp(logprobs.astype(np.float64)).sum(1)
    # Rounding of a server in bfloat16 may exceed 1 by less than that: no tail is left then.
    tail = np.maximum(1 - mass, 0).astype(np.float32)
    return Signal(answer, ids, np.maximum(logprobs, _LEAST).astype(np.float16), tail)


def _without_padding(
    ids: NDArray[Any], logprobs: NDArray[np.float32], asked: Asked
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Put other tokens, last of their row, where padding stands: with their even share of the mass outside."""
    ids, logprobs = ids.copy(), logprobs.copy()
    for row in np.flatnonzero((ids >= asked.vocabulary).any(1)):
        real = ids[row] < asked.vocabulary
        least, kept = logprobs[row].min(), logprobs[row][real]
        others = np.setdiff1d(np.arange(min(2 * asked.top_k, asked.vocabulary)), ids[row])[: (~real).sum()]
        share = max(1 - np.exp(kept.astype(np.float64)).sum(), 0.0) / (asked.vocabulary - len(kept))
        each = min(float(np.log(max(share, np.finfo(np.float64).tiny))), least)  # a likelier one would be among them
        ids[row] = np.concatenate([ids[row][real], others])
        logprobs[row] = np.concatenate([kept, np.full(len(others), each, np.float32)])
    return ids, logprobs


def _kept(meta: Any, expected: tuple[int, int], side: str) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Return (ids, log-probabilities) of the likeliest tokens."""
    told = "top log-probabilities"
    if f"{side}_top_logprobs_shape" in meta:
        shape = tuple(meta[f"{side}_top_logprobs_shape"])
        _require(shape == expected, f"{told} {expected}", f"{shape}")
        logprobs = _array(meta, f"{side}_top_logprobs_val_flat_b64", shape).astype(np.float32)
        return _array(meta, f"{side}_top_logprobs_idx_flat_b64", shape), logprobs
    if not isinstance(rows := meta.get(f"{side}_top_logprobs"), list):
        raise Failure(f"expected {told} in the flat form, got none: SGLang 0.5.23 or newer is needed")
    # A router passes on what it knows of a request, and the flat form is not among that.
    rows = rows[1:] if rows and rows[0] is None else rows  # nothing predicts the first token that was sent
    lengths = {len(row or ()) for row in rows}
    _require((len(rows), lengths) == (expected[0], {expected[1]}), f"{told} {expected}", f"{len(rows)} of {lengths}")
    ids = np.array([[entry[1] for entry in row] for row in rows], np.int32)
    return ids, np.array([[entry[0] for entry in row] for row in rows], np.float32)


def scored_of(reply: Any, answer: NDArray[np.int32], asked: Asked) -> NDArray[np.float32]:
    """Return the log-probabilities of the tokens of an answer that was sent, (T,); Failure for what cannot be right."""
    meta = _meta(reply, asked)
    entries = meta.get("input_token_logprobs") or []
    said = entries[1:]  # the first is the prompt's last token, which nothing predicts here
    _require(len(said) == len(answer), f"{len(answer)} log-probabilities, one a token", f"{len(said)}")
    ids = np.array([entry[1] for entry in said], np.int64)
    # The last id of the vocabulary comes back as 0 (SGLang 0.5.23), with its own log-probability.
    same = (ids == answer) | ((ids == 0) & (answer >= asked.vocabulary - 1))
    _require(bool(same.all()), f"those of the tokens {answer[~same][:8]}", f"those of {ids[~same][:8]}")
    kept = np.array([entry[0] for entry in said], np.float32)
    _probable(kept)
    return kept


def states_of(reply: Any, asked: Asked, width: int) -> NDArray[np.float32]:
    """Return the final states of all tokens that were sent, (tokens, D); Failure where the server left some out."""
    # What follows the first entry belongs to tokens made after it.
    states, _ = _entry(_entries(reply, asked)[0])
    if states.shape != (asked.prompt_tokens, width):
        raise Failure(_left_out((asked.prompt_tokens, width), states.shape))
    _require(bool(np.isfinite(states).all()), "finite hidden states", "others")
    return states


def answer_states_of(reply: Any, answer: NDArray[np.int32], asked: Asked, width: int) -> NDArray[np.float32]:
    """Return the states that predict the answer's tokens, (T, D); Failure where the server left some out.

    Each entry's last state predicts a token. The first entry is of the prompt, each other of the token before, or of
    all tokens so far where a server that was short of memory had to start again.
    """
    entries = _entries(reply, asked)
    _require(len(entries) == len(answer), f"hidden states of {len(answer)} steps, one a token", f"{len(entries)}")
    states = np.empty((len(answer), width), np.float32)
    for at, entry in enumerate(entries):
        rows, computed = _entry(entry)
        if computed != asked.prompt_tokens + at and (at == 0 or computed != 1):
            raise Failure(_left_out((asked.prompt_tokens + at, width), (computed, *rows.shape[1:])))
        _require(len(rows) > 0 and rows.shape[1:] == (width,), f"states of width {width}", f"{rows.shape}")
        states[at] = rows[-1]
    _require(bool(np.isfinite(states).all()), "finite hidden states", "others")
    return states


def _entries(reply: Any, asked: Asked) -> list[Any]:
    if not (found := _meta(reply, asked).get("hidden_states")):
        raise Failure("expected hidden states, got none: start the server with --enable-return-hidden-states")
    return list(found)


def _entry(entry: Any) -> tuple[NDArray[np.float32], int]:
    """Return (the rows that were sent, how many tokens were computed)."""
    if isinstance(entry, dict):
        states, shape = _floats(base64.b64decode(entry["b64"]), entry["dtype"]), tuple(entry["shape"])
        _require(states.size == np.prod(shape), f"states of {np.prod(shape)} values", f"{states.size}")
        states = states.reshape(shape)
        return states, int(entry.get("computed", len(states)))
    states = np.atleast_2d(np.asarray(entry, np.float32))  # SGLang's own form
    return states, len(states)


def _left_out(expected: tuple[int, ...], got: tuple[int, ...]) -> str:
    return (
        f"expected hidden states {expected}, got {got}: the server left rows out; start it with "
        "--disable-radix-cache --chunked-prefill-size -1"
    )


def _meta(reply: Any, asked: Asked) -> Any:
    if not isinstance(reply, dict) or not isinstance(reply.get("meta_info"), dict):
        raise Failure(f"expected a reply of SGLang's /generate, got {str(reply)[:200]!r}")
    meta = reply["meta_info"]
    got = meta.get("prompt_tokens")
    _require(got == asked.prompt_tokens, f"{asked.prompt_tokens} tokens of prompt", f"{got}")
    got = str(meta.get("weight_version"))
    _require(got == asked.weights, f"weights of version {asked.weights!r}", f"{got!r}")
    return meta


def _array(meta: Any, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    dtype = meta.get(f"{name}_dtype")
    _require(dtype in _DTYPES, f"{name} as one of {', '.join(_DTYPES)}", f"{dtype}")
    raw: NDArray[Any] = np.frombuffer(base64.b64decode(meta[name]), _DTYPES[dtype])
    _require(raw.size == np.prod(shape), f"{name} of {np.prod(shape)} values", f"{raw.size}")
    return raw.reshape(shape)


def _floats(raw: bytes, dtype: str) -> NDArray[np.float32]:
    _require(dtype in {"float32", "bfloat16"}, "states in float32 or bfloat16", dtype)
    values: NDArray[Any] = np.frombuffer(raw, _DTYPES[dtype])
    if dtype == "bfloat16":  # the upper half of a float32
        values = (values.astype(np.uint32) << 16).view(np.float32)
    found: NDArray[np.float32] = values.astype(np.float32)
    return found


def _inside(ids: NDArray[Any], end: int) -> None:
    wrong = (ids < 0) | (ids >= end)
    _require(not wrong.any(), f"token ids in [0, {end})", f"{ids[wrong][:1]}")


def _probable(logprobs: NDArray[np.float32]) -> None:
    _require(bool(np.isfinite(logprobs).all()), "finite log-probabilities", f"{logprobs.min()}")
    _require(bool((logprobs <= 0).all()), "log-probabilities <= 0", f"{logprobs.max()}")


def _require(holds: bool, expected: str, got: str) -> None:
    if not holds:
        raise Failure(f"expected {expected}, got {got}")
