"""What an endpoint that speaks OpenAI's protocol replies -> text and ending, or the reason why it is no answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from distill.errors import Failure
from distill.teachers.protocol import CUT, EMPTY, FILTERED, REFUSED, WHOLE, AnswerSignal

_FINISHED = {  # what servers say at the end of an answer; the last two of the first kind are older TGI's
    "stop": WHOLE,
    "eos_token": WHOLE,
    "stop_sequence": WHOLE,
    "length": CUT,
    "content_filter": FILTERED,
}


@dataclass(frozen=True)
class Said:
    """An answer as it came."""

    text: str
    ending: int
    model: str  # the name that the endpoint says it is
    prompt_tokens: int | None  # as the endpoint counts them; None where it does not say
    answer_tokens: int | None


def said(reply: Any, endpoint: Literal["chat", "completions"]) -> Said:
    """Return what a reply says; Failure for what is none."""
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise Failure(f"expected one choice, got {str(reply)[:200]!r}")
    (choice,) = choices
    finished, refused = choice.get("finish_reason"), False
    if finished not in _FINISHED:
        raise Failure(f"expected an answer that ends by {', '.join(_FINISHED)}, got {finished!r}")
    if endpoint == "chat":
        message = choice.get("message")
        if not isinstance(message, dict):
            raise Failure(f"expected a message, got {str(choice)[:200]!r}")
        text, refused = message.get("content"), bool(message.get("refusal"))
    else:
        text = choice.get("text")
    if not (text is None or isinstance(text, str)):
        raise Failure(f"expected a text, got {type(text).__name__} {str(text)[:200]!r}")
    ending = _FINISHED[finished]
    if ending != FILTERED and (refused or not (text or "").strip()):
        ending = REFUSED if refused else EMPTY
    usage = reply.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    return Said(
        text or "",
        ending,
        str(reply.get("model", "")),
        _count(counts.get("prompt_tokens")),
        _count(counts.get("completion_tokens")),
    )


def filtered(refusal: Any) -> bool:
    """Return whether a refused request was refused for what the prompt says, and not for how it was put."""
    error = refusal.get("error") if isinstance(refusal, dict) else None
    return isinstance(error, dict) and "content_filter" in (error.get("code"), error.get("type"))


def signal(found: Said, tokenizer: Any, max_new_tokens: int) -> AnswerSignal:
    """Return an answer in the student's tokens, which end with its eos token unless the answer was cut.

    It is cut where the teacher came to its limit, or where it is longer than the student can say. Text that looks like
    a special token is not one.
    """
    if found.ending >= FILTERED:
        return _same_ending([tokenizer.eos_token_id], found.ending)
    ids = tokenizer(found.text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    whole = ids if found.ending == CUT else [*ids, tokenizer.eos_token_id]
    if len(whole) > max_new_tokens:
        return _same_ending(whole[:max_new_tokens], CUT)
    return _same_ending(whole, found.ending)


def _same_ending(ids: Sequence[int], ending: int) -> AnswerSignal:
    answer: NDArray[np.int32] = np.asarray(ids, np.int32)
    return AnswerSignal(answer, np.full(len(answer), ending, np.uint8))


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None
