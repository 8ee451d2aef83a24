"""Scores of single rows that need texts alone: exact match, token F1, refusals, and metrics of one's own.

    [project.entry-points."redistill.metrics"]
    brevity = "my_package.metrics:brevity"

    def brevity(prompts: Sequence[str], responses: Sequence[str], targets: Sequence[str]) -> ArrayLike: ...  # (rows,)
    brevity.better = "lower"  # or "higher"
    brevity.bound = 500  # how much a row can gain or lose at most; for a gate

One of one's own is loaded and called only when `judging.own_metrics` names it.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from monitoring.errors import InputError
from monitoring.extensions import METRICS, registered
from monitoring.feature_settings import REFUSAL
from monitoring.judging_settings import Better

Floats = npt.NDArray[np.float64]

_ARTICLES = frozenset(("a", "an", "the"))
# Scripts that are written without spaces: each character is a word (as in MLQA; Lewis et al. 2020).
_UNSPACED = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])"
)
_REMEDY = "correct it, or leave it out of judging.own_metrics"


def exact_match(responses: Sequence[str], targets: Sequence[str]) -> Floats:
    """Return 1.0 where a response is its target but for white space around it, else 0.0; shape (rows,)."""
    pairs = zip(responses, targets, strict=True)
    return np.array([response.strip() == target.strip() for response, target in pairs], np.float64)


def token_f1(responses: Sequence[str], targets: Sequence[str]) -> Floats:
    """Return the harmonic mean of precision and recall of the target's words, in [0, 1]; shape (rows,).

    As SQuAD's script does it (Rajpurkar et al. 2016), without case, punctuation and English articles; where neither
    has a word, 1. Beyond it, compatible characters are one (NFKC), punctuation is Unicode's, and in scripts without
    spaces each character is a word.
    """
    return np.array([_f1(*pair) for pair in zip(responses, targets, strict=True)], np.float64)


def refusal_rate(responses: Sequence[str], pattern: str = REFUSAL) -> Floats:
    """Return 1.0 where the pattern, by default that of `features.refusal`, is found in a response; shape (rows,)."""
    found = re.compile(pattern).search
    return np.array([found(response) is not None for response in responses], np.float64)


def own_metric(
    name: str, prompts: Sequence[str], responses: Sequence[str], targets: Sequence[str]
) -> tuple[Floats, Better]:
    """Return what the entry point's function makes of the rows, shape (rows,), and which direction is better.

    Raises InputError, naming the entry point, when it is not registered or more than once, cannot be loaded, raises,
    returns anything but one finite number a row, or does not say what is better.
    """
    function, place = _own(name)
    try:
        made = np.asarray(function(list(prompts), list(responses), list(targets)), np.float64)
    except Exception as error:  # whatever somebody else's code raises; what it says may hold a prompt
        raise InputError(f"{place} failed: {type(error).__name__}; {_REMEDY}") from None
    if made.shape != (len(prompts),):
        raise InputError(f"{place} returned {made.shape} for {len(prompts)} rows, not one number each; {_REMEDY}")
    if bad := int((~np.isfinite(made)).sum()):
        raise InputError(f"{place} returned {bad} numbers that are not finite; {_REMEDY}")
    return made, own_better(name)


def own_better(name: str) -> Better:
    """Return which direction is better in a metric of one's own; InputError as `own_metric`."""
    function, place = _own(name)
    better = getattr(function, "better", None)
    if better not in ("higher", "lower"):
        raise InputError(f'{place} has {better!r} for `better`: set it to "higher" or "lower"; {_REMEDY}')
    return cast(Better, better)


def own_bound(name: str) -> float | None:
    """Return how much a row can gain or lose at most in a metric of one's own, None where it does not say.

    InputError as `own_metric`.
    """
    function, place = _own(name)
    bound = getattr(function, "bound", None)
    if bound is not None and not (isinstance(bound, int | float) and 0 < bound < math.inf):
        raise InputError(f"{place} has {bound!r} for `bound`: set it to a number above 0; {_REMEDY}")
    return bound


def _own(name: str) -> tuple[Callable[..., Any], str]:
    """The function of an entry point, and how errors call it."""
    point = registered(METRICS, name, "judging.own_metrics")
    place = f"metric {name!r} (entry point {point.value} of {METRICS})"
    try:
        return point.load(), place
    except Exception as error:  # whatever somebody else's code raises
        raise InputError(f"{place} failed: {type(error).__name__}: {error}; {_REMEDY}") from error


def _f1(response: str, target: str) -> float:
    said, wanted = words(response), words(target)
    if not said or not wanted:
        return float(said == wanted)
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted))


def words(text: str) -> list[str]:
    """Return the words of a text that count for token F1."""
    plain = unicodedata.normalize("NFKC", text).casefold().translate(_PUNCTUATION)
    return [word for word in _UNSPACED.sub(r" \1 ", plain).split() if word not in _ARTICLES]


class _Punctuation(dict[int, str | None]):
    """What `str.translate` asks for a character: None removes it; each is looked up once."""

    def __missing__(self, code: int) -> str | None:
        ascii_symbol = code < 128 and chr(code) in "$+<=>^`|~"  # Unicode has them among the symbols
        punctuation = ascii_symbol or unicodedata.category(chr(code)).startswith("P")
        self[code] = None if punctuation else chr(code)
        return self[code]


_PUNCTUATION = _Punctuation()
