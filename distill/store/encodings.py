"""How the signal store keeps answer tokens: arrays with one row a token, and back again.

topk:K         K ids in as few bits as they need, K log-probabilities and the logarithm of the tail mass as float16,
               and where among the K the answer's token is: K * bits / 8 + 2 K + 3 bytes a token
hidden:bf16    the states as bfloat16, rounded to nearest: 2 D + 6 bytes
hidden:int8    round(state / scale), scale = the row's largest / 127: D + 10 bytes
hidden:svdR    float16 coordinates along R leading singular directions (distill/store/basis.py): 2 R + 10 bytes
answer         of a teacher that gives nothing else: the answer and how it came to its end, 5 bytes
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from distill.errors import InputError
from distill.store import bits, hidden
from distill.store.basis import Basis
from distill.teachers.protocol import AnswerSignal, AnySignal, HiddenSignal, Signal

Rows: TypeAlias = slice | NDArray[np.int64]  # of tokens; a slice makes views where it can

ANSWER = "answer"  # no settings ask for it: whoever can give more does
FORMAT = r"topk:[1-9]\d*|hidden:(bf16|int8|svd[1-9]\d*)"
_OUTSIDE = 255  # rank of an answer's token that is not among the k; from k = 255 on a rank has two bytes
_MOST = 65_535  # k: of those two bytes one value is for tokens outside
_BESIDE = np.dtype([("at", "<i8"), ("token", "<i4")])  # sorted by `at`


@dataclass(frozen=True)
class Encoded:
    """T answer tokens of one format; all that decoding needs, but for the basis that `parameters` may name."""

    format: str
    parameters: dict[str, Any]
    sections: dict[str, NDArray[Any]]  # first axis T, but for `outside`


def parse(text: str, where: str = "signal format") -> tuple[str, int]:
    """Return ("topk", k), ("bf16", 0), ("int8", 0) or ("svd", directions); InputError for what cannot be kept."""
    if not re.fullmatch(FORMAT, text):
        raise InputError(f"{where} {text!r}: use topk:K, hidden:bf16, hidden:int8 or hidden:svdR, as in hidden:svd128")
    family, name = text.split(":")
    if family == "topk":
        if len(name) > len(str(_MOST)) or int(name) > _MOST:
            raise InputError(f"{where} {text!r}: at most {_MOST:,} tokens are kept; hidden:bf16 keeps all of them")
        return family, int(name)
    return ("svd", int(name.removeprefix("svd"))) if name.startswith("svd") else (name, 0)


def merged(signals: Sequence[AnySignal]) -> AnySignal:
    """Return the tokens of several signals of one format as one signal."""
    first = signals[0]
    names: tuple[str, ...] = ("ids", "logprobs", "tail")
    if isinstance(first, (HiddenSignal, AnswerSignal)):
        names = ("states", "logprobs") if isinstance(first, HiddenSignal) else ("ending",)
    parts = {name: np.concatenate([getattr(signal, name) for signal in signals]) for name in ("answer", *names)}
    if isinstance(first, AnswerSignal):
        return AnswerSignal(**parts)
    return HiddenSignal(**parts, format=first.format) if isinstance(first, HiddenSignal) else Signal(**parts)


def format_of(signal: AnySignal) -> str:
    """Return the format that a signal is kept in."""
    if isinstance(signal, AnswerSignal):
        return ANSWER
    return signal.format if isinstance(signal, HiddenSignal) else f"topk:{signal.ids.shape[1]}"


def picked(signal: AnySignal, rows: NDArray[np.int64]) -> AnySignal:
    """Return some tokens of a signal."""
    if isinstance(signal, AnswerSignal):
        return AnswerSignal(signal.answer[rows], signal.ending[rows])
    if isinstance(signal, HiddenSignal):
        return HiddenSignal(signal.answer[rows], signal.states[rows], signal.logprobs[rows], signal.format)
    return Signal(signal.answer[rows], signal.ids[rows], signal.logprobs[rows], signal.tail[rows])


def encode(signal: AnySignal, basis: Basis | None = None) -> Encoded:
    """Return T tokens of checked signals as they are kept; hidden:svdR without a basis is kept as bfloat16.

    Raises InputError for more log-probabilities a token than can be kept.
    """
    if isinstance(signal, AnswerSignal):
        return Encoded(
            ANSWER, {"kept": ANSWER}, {"answer": signal.answer.astype("<i4"), "ending": signal.ending.astype("u1")}
        )
    if isinstance(signal, HiddenSignal):
        parameters, sections = hidden.encode(signal.states, parse(signal.format)[0], basis)
        beside = {"answer": signal.answer.astype("<i4"), "logprobs": signal.logprobs.astype("<f2")}
        return Encoded(signal.format, parameters, {**beside, **sections})
    _, k = parse(format_of(signal))
    width = bits.bits_for(int(signal.ids.max()))
    with np.errstate(divide="ignore"):  # no tail: its logarithm is -inf, of which exp is 0 again
        tail = np.log(signal.tail.astype(np.float32)).astype("<f2")
    sections = {
        "ids": bits.pack(signal.ids.astype(np.int32), width),
        "logprobs": signal.logprobs.astype("<f2"),
        "tail": tail,
        **_ranks(signal.answer, signal.ids == signal.answer[:, None], k),
    }
    return Encoded(format_of(signal), {"k": k, "bits": width}, sections)


def decode(encoded: Encoded, rows: Rows, basis: Basis | None = None) -> AnySignal:
    """Return the signal of some tokens; a slice's log-probabilities are a view of what is kept."""
    kept, parameters = encoded.sections, encoded.parameters
    if encoded.format == ANSWER:
        return AnswerSignal(kept["answer"][rows], kept["ending"][rows])
    if "answer" in kept:
        states = hidden.decode(kept, parameters, rows, basis)
        return HiddenSignal(kept["answer"][rows], states, kept["logprobs"][rows], encoded.format)
    ids = bits.unpack(kept["ids"][rows], parameters["k"], parameters["bits"])
    tail = np.exp(kept["tail"][rows].astype(np.float32))
    return Signal(_answers(kept, rows, ids), ids, kept["logprobs"][rows], tail)


def same_kind(format: str, parameters: dict[str, Any]) -> tuple[Any, ...]:
    """Return what the tokens of two shards must have in common to be joined."""
    return format, *sorted((name, value) for name, value in parameters.items() if name != "bits")


def take(encoded: Encoded, rows: NDArray[np.int64]) -> Encoded:
    """Return some tokens as they are kept, nothing decoded but the answers' tokens outside the k."""
    kept = {name: part[rows] for name, part in encoded.sections.items() if name != "outside"}
    if "outside" in encoded.sections:
        at = np.flatnonzero(kept["rank"] == _outside_rank(kept["rank"]))
        kept["outside"] = _beside(at, _tokens_beside(encoded.sections["outside"], rows[at]))
    return Encoded(encoded.format, encoded.parameters, kept)


def join(parts: Sequence[Encoded]) -> Encoded:
    """Return the tokens of several, of one kind, one after the other."""
    parameters = dict(parts[0].parameters)
    if "bits" in parameters:
        parameters["bits"] = max(part.parameters["bits"] for part in parts)
        parts = [_with_bits(part, parameters["bits"]) for part in parts]
    sections = {
        name: np.concatenate([part.sections[name] for part in parts]) for name in parts[0].sections if name != "outside"
    }
    if "outside" in parts[0].sections:
        starts = np.cumsum([0, *(len(part.sections["rank"]) for part in parts[:-1])])
        shifted = [
            _beside(part.sections["outside"]["at"] + start, part.sections["outside"]["token"])
            for part, start in zip(parts, starts, strict=True)
        ]
        sections["outside"] = np.concatenate(shifted)
    return Encoded(parts[0].format, parameters, sections)


def _with_bits(encoded: Encoded, width: int) -> Encoded:
    k, narrow = encoded.parameters["k"], encoded.parameters["bits"]
    if narrow == width:
        return encoded
    ids = bits.pack(bits.unpack(encoded.sections["ids"], k, narrow), width)
    return Encoded(encoded.format, {**encoded.parameters, "bits": width}, {**encoded.sections, "ids": ids})


def _ranks(answer: NDArray[np.int32], same: NDArray[np.bool_], k: int) -> dict[str, NDArray[Any]]:
    """Return where among its k ids each token of the answer is, and the tokens that are not among them."""
    rank = same.argmax(1).astype("u1" if k < _OUTSIDE else "<u2")
    at = np.flatnonzero(~same.any(1))
    rank[at] = _outside_rank(rank)
    return {"rank": rank, "outside": _beside(at, answer[at])}


def _outside_rank(rank: NDArray[Any]) -> int:
    return int(np.iinfo(rank.dtype).max)


def _answers(kept: dict[str, NDArray[Any]], rows: Rows, ids: NDArray[np.int32]) -> NDArray[np.int32]:
    rank = kept["rank"][rows]
    outside = rank == _outside_rank(rank)
    answer: NDArray[np.int32] = ids[np.arange(len(ids)), np.where(outside, 0, rank)]
    if outside.any():
        at = np.arange(len(kept["rank"]))[rows] if isinstance(rows, slice) else rows
        answer[outside] = _tokens_beside(kept["outside"], at[outside])
    return answer


def _beside(at: NDArray[np.int64], tokens: NDArray[np.int32]) -> NDArray[Any]:
    found = np.empty(len(at), _BESIDE)
    found["at"], found["token"] = at, tokens
    return found


def _tokens_beside(outside: NDArray[Any], at: NDArray[np.int64]) -> NDArray[np.int32]:
    found: NDArray[np.int32] = outside["token"][np.searchsorted(outside["at"], at)]
    return found


def ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return starts[0] .. starts[0] + lengths[0] - 1, starts[1] .. and so on, one after the other."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)
