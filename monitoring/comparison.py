"""Two models' scores of the same rows -> the difference with its bounds and p-values; first form."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """How much the challenger gains (loses, below 0), with one-sided bounds at alpha each.

    `p_value` is that of "it gains `bar` or less", `p_worse` that of "it loses nothing".
    """

    gain: float
    lower: float
    upper: float
    p_value: float
    p_worse: float
    error: float  # standard error of the gain


def compare(champion: Floats, challenger: Floats, bar: float, alpha: float) -> Comparison:
    """Compare paired scores, shape (rows,), two or more, of which higher ones are better."""
    gains = challenger - champion
    gain, error, freedom = float(gains.mean()), float(stats.sem(gains)), len(gains) - 1
    if not error:
        return Comparison(gain, gain, gain, float(gain <= bar), float(gain >= 0), 0.0)
    reach = float(stats.t.ppf(1 - alpha, freedom)) * error
    return Comparison(
        gain,
        gain - reach,
        gain + reach,
        float(stats.t.sf((gain - bar) / error, freedom)),
        float(stats.t.cdf(gain / error, freedom)),
        error if math.isfinite(error) else 0.0,
    )
