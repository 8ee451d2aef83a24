"""The calibration error of two models on the same rows, as something that has a mean and a bias.

    ECE = sum over bins of |sum of (confidence - correct) in the bin| / rows

in ten bins of as many rows each, by the model's own confidence (Naeini et al., AAAI 2015; bins of equal mass: Nixon et
al. 2019). With each bin's sign s held as it was found it is the mean of s (confidence - correct), so the challenger's
gain is one number a row, and is resampled as any other.

What the signs hide is a bias: |gap| is above the true gap, the more the nearer the true gap is to 0, so the ECE of a
perfectly calibrated model is not 0 but about sqrt(2 bins p (1 - p) / (pi rows)), 0.03 at 1,000 rows. Two models are
biased differently, and a challenger that is miscalibrated by 0.02 would look as good as a perfect champion. So the
bounds allow for the largest bias that fits with the gaps seen: below some 8,000 rows two points of calibration can
hardly be shown to be kept, and the check says how many rows would do.
"""

import numpy as np
import numpy.typing as npt
from scipy import special

from monitoring.means import Gains

Floats = npt.NDArray[np.float64]

BINS = 10
SURE = 1.645  # standard errors by which a bin's true gap may be nearer to 0 than the one seen


def calibration_error(scores: Floats) -> float:
    """Return the expected calibration error of confidences and correctness, shape (rows, 2)."""
    return float(_signed(scores)[0].mean()) if len(scores) else 0.0


def calibration_gains(champion: Floats, challenger: Floats) -> Gains:
    """Return how much better calibrated the challenger is, a row, from two arrays of shape (rows, 2)."""
    (before, before_bias), (after, after_bias) = _signed(champion), _signed(challenger)
    return Gains(before - after, reach=1.0, over=before_bias, under=after_bias)


def _signed(scores: Floats) -> tuple[Floats, float]:
    """What each row adds to the error, whose mean is the error, (rows,); and the largest bias that fits with it."""
    confidence, gap = scores[:, 0], scores[:, 0] - scores[:, 1]
    inner = np.quantile(confidence, np.arange(1, BINS) / BINS)
    at = np.searchsorted(inner, confidence, side="left")  # (rows,)
    rows, total = np.bincount(at, minlength=BINS), np.bincount(at, gap, BINS)
    filled = np.maximum(rows, 1)
    mean = total / filled
    variance = np.bincount(at, (gap - mean[at]) ** 2, BINS) / filled
    error = np.sqrt(np.maximum(variance, 0.25 / filled) / filled)  # few rows may all be right by chance
    nearest = np.maximum(np.abs(mean) - SURE * error, 0.0) / error
    # The mean of |N(m, 1)| above m, Leone, Nelson and Nottingham 1961.
    folded = np.sqrt(2 / np.pi) * np.exp(-(nearest**2) / 2) + nearest * special.erf(nearest / np.sqrt(2)) - nearest
    bias = float((rows * error * folded).sum() / len(scores))
    return np.where(mean[at] < 0, -gap, gap), bias
