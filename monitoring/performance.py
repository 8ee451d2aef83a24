"""How good the model is in a window: measured where labels have arrived, estimated from its confidence where not.

    calibration = fit_calibration(reference)                 # labelled rows, kept with the profile
    quality = measure(window, calibration, seed=0)

Rows are of the request log: `response`, `reference` (the label, nullable) and `mean_logprob` (nullable); confidence
is exp(mean_logprob), the geometric mean of the response's token probabilities. The estimate takes the calibration of
the reference to the window's confidences (Guillory et al. 2021): it sees a window that has become harder in ways that
the model notices, and not one where the same confidence is right less often than it was. A window much harder than
the reference is estimated too high: below the reference's lowest confidences the calibration is flat.
"""

import math

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import BaseModel, ConfigDict, FiniteFloat, NonNegativeFloat, NonNegativeInt
from scipy.special import ndtri

from monitoring.features import floats, is_numeric, texts

MIN_LABELLED = 30  # fewer labelled rows measure nothing, and calibrate nothing
RESAMPLES = 500
CALIBRATION_BINS = 50
ECE_BINS = 10
LEVEL = 0.95  # of all intervals

Floats = npt.NDArray[np.float64]


class Calibration(BaseModel):
    """How often the model was right, by confidence: bin i holds edges[i - 1] < confidence <= edges[i]."""

    model_config = ConfigDict(frozen=True)

    edges: tuple[FiniteFloat, ...]  # one fewer than bins
    accuracy: tuple[NonNegativeFloat, ...]  # rises with confidence
    rows: tuple[NonNegativeInt, ...]


class Interval(BaseModel):
    """A value and its interval, of 95 % where nothing else is said."""

    model_config = ConfigDict(frozen=True)

    value: float
    low: float
    high: float


class Quality(BaseModel):
    """What is known of the model's quality in a window; what is not is None, and `why` says so."""

    model_config = ConfigDict(frozen=True)

    rows: int
    labelled: int
    accuracy: Interval | None = None  # exact match on the labelled rows
    f1: Interval | None = None  # macro: every class weighs the same
    ece: Interval | None = None  # expected calibration error of exp(mean_logprob)
    estimated_accuracy: Interval | None = None  # of all rows that have a confidence
    why: tuple[str, ...] = ()

    def told(self) -> str:
        """Return in words what is known."""
        known = {
            "accuracy": self.accuracy,
            "macro F1": self.f1,
            "calibration error": self.ece,
            "accuracy estimated from confidence": self.estimated_accuracy,
        }
        parts = [f"{name} {seen.value:.3f} ({seen.low:.3f}-{seen.high:.3f})" for name, seen in known.items() if seen]
        return f"quality on {self.labelled} labelled of {self.rows} rows: {', '.join(parts) or '; '.join(self.why)}"


def fit_calibration(frame: pd.DataFrame) -> Calibration | None:
    """Return the accuracy by confidence of labelled rows, an isotonic step function, or None when there are too few.

    The rows are put into bins of equal size, and neighbours that do not rise are pooled (Ayer et al. 1955).
    """
    confidence, right = _confidence(frame), _right(frame)
    known = np.isfinite(confidence) & np.isfinite(right)
    if known.sum() < MIN_LABELLED:
        return None
    confidence, right = confidence[known], right[known]
    bins = max(1, min(CALIBRATION_BINS, int(known.sum()) // 20))
    edges = np.unique(np.quantile(confidence, np.arange(1, bins) / bins, method="inverted_cdf"))
    edges = edges[edges < confidence.max()]  # or the last bin would be empty
    place = np.searchsorted(edges, confidence, side="left")
    pools: list[list[float]] = []  # rows, right, last bin
    sizes, hits = np.bincount(place), np.bincount(place, weights=right)
    for last, (size, hit) in enumerate(zip(sizes, hits, strict=True)):
        pools.append([float(size), float(hit), last])
        while len(pools) > 1 and pools[-2][1] / pools[-2][0] >= pools[-1][1] / pools[-1][0]:
            size, hit, end = pools.pop()
            pools[-1] = [pools[-1][0] + size, pools[-1][1] + hit, end]
    return Calibration(
        edges=tuple(float(edges[int(end)]) for _, _, end in pools[:-1]),
        accuracy=tuple(hit / size for size, hit, _ in pools),
        rows=tuple(int(size) for size, _, _ in pools),
    )


def measure(frame: pd.DataFrame, calibration: Calibration | None, seed: int) -> Quality:
    """Return the quality of a window's rows; what cannot be known is None with its reason, never an exception.

    A labelled row is one with a `reference` and a `response`; they match when they are equal without surrounding
    blanks. Accuracy has Wilson's interval, F1 a percentile bootstrap interval. ECE's is mirrored about the value (the
    basic bootstrap, of the bins' mean gaps), as noise makes a calibration error larger, and resampling it again; it
    begins at 0 unless a perfectly calibrated model would hardly show as much. F1's covers only about 90 % where ten or
    more uneven classes share 100 to 300 rows. The estimate's interval holds both the noise of the calibration and that
    of the window.
    """
    why: list[str] = []
    confidence, right = _confidence(frame), _right(frame)
    labelled = np.isfinite(right)
    count = int(labelled.sum())
    accuracy = f1 = ece = None
    if count < MIN_LABELLED:
        why.append(f"only {count} labelled rows, at least {MIN_LABELLED} are needed to measure quality")
    else:
        rng = np.random.default_rng(seed)
        accuracy = wilson(int(right[labelled].sum()), count)
        f1 = _f1(frame, labelled, rng, why)
        both = labelled & np.isfinite(confidence)
        if both.sum() < MIN_LABELLED:
            why.append(
                f"only {int(both.sum())} labelled rows have a mean_logprob, at least {MIN_LABELLED} are needed for ECE"
            )
        else:
            ece = _ece(confidence[both], right[both], rng)
    return Quality(
        rows=len(frame),
        labelled=count,
        accuracy=accuracy,
        f1=f1,
        ece=ece,
        estimated_accuracy=_estimate(confidence[np.isfinite(confidence)], calibration, why),
        why=tuple(why),
    )


def wilson(hits: int, rows: int, level: float = LEVEL) -> Interval:
    """Return the share of hits among 1 or more rows with Wilson's score interval (1927)."""
    z, share = _z(level), hits / rows
    middle = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    reach = z / (1 + z * z / rows) * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    return Interval(value=share, low=max(0.0, min(middle - reach, share)), high=min(1.0, max(middle + reach, share)))


def _z(level: float = LEVEL) -> float:
    return float(ndtri((1 + level) / 2))


def _confidence(frame: pd.DataFrame) -> Floats:
    """exp(mean_logprob), shape (rows,), at most 1; NaN where it is not known."""
    if "mean_logprob" not in frame or not is_numeric(frame["mean_logprob"]):
        return np.full(len(frame), np.nan)
    logprob = floats(frame["mean_logprob"])
    return np.where(np.isfinite(logprob), np.exp(np.minimum(logprob, 0.0)), np.nan)


def _answers(frame: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Labels and responses without surrounding blanks."""
    absent = pd.Series(None, frame.index, object)
    label, response = (texts(frame[name]) if name in frame else absent for name in ("reference", "response"))
    return label.str.strip() if label.notna().any() else label, (
        response.str.strip() if response.notna().any() else response
    )


def _right(frame: pd.DataFrame) -> Floats:
    """1 where the response is the label and 0 where it is not, shape (rows,); NaN where either is missing."""
    label, response = _answers(frame)
    known = (label.notna() & response.notna()).to_numpy()
    return np.where(known, (label == response).to_numpy(dtype=float), np.nan)


def _f1(
    frame: pd.DataFrame, labelled: npt.NDArray[np.bool_], rng: np.random.Generator, why: list[str]
) -> Interval | None:
    label, response = (answers[labelled].to_numpy() for answers in _answers(frame))
    codes, names = pd.factorize(np.concatenate([label, response]))
    classes, rows = len(names), len(label)
    if classes > rows / 2:
        why.append(f"{classes} different answers in {rows} labelled rows are no classes: no F1")
        return None
    pairs, counts = np.unique(codes[:rows] * classes + codes[rows:], return_counts=True)
    true, given = np.eye(classes)[pairs // classes], np.eye(classes)[pairs % classes]  # (pairs, classes)

    def macro(cells: Floats) -> Floats:
        """Macro F1 over the classes that occur, of each row of cells, shape (resamples, pairs)."""
        total = cells @ (true + given)
        score = 2 * (cells @ (true * given)) / np.where(total > 0, total, 1.0)
        return np.asarray(score.sum(axis=1) / (total > 0).sum(axis=1))

    drawn = [macro(rng.multinomial(rows, counts / rows, size=100).astype(float)) for _ in range(RESAMPLES // 100)]
    low, high = np.quantile(np.concatenate(drawn), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    value = float(macro(counts[None].astype(float))[0])
    return Interval(value=value, low=min(float(low), value), high=max(float(high), value))


def _ece(confidence: Floats, right: Floats, rng: np.random.Generator) -> Interval:
    order = np.argsort(confidence, kind="stable")
    gaps = [np.asarray(part) for part in np.array_split((right - confidence)[order], ECE_BINS)]
    parts = [np.asarray(part) for part in np.array_split(confidence[order], ECE_BINS)]
    weights = np.array([len(part) for part in gaps]) / len(order)
    means = np.array([part.mean() for part in gaps])
    errors = np.array([part.std(ddof=1) / math.sqrt(len(part)) for part in gaps])
    value = float(np.abs(means) @ weights)
    drawn = np.abs(rng.normal(means, errors, (RESAMPLES, ECE_BINS))) @ weights
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    calibrated = [math.sqrt(float((part * (1 - part)).sum())) / len(part) for part in parts]
    noise = np.abs(rng.normal(0.0, calibrated, (RESAMPLES, ECE_BINS))) @ weights
    surely = value > np.quantile(noise, (1 + LEVEL) / 2)  # else a model without any error may show as much
    return Interval(
        value=value,
        low=max(2 * value - float(high), 0.0) if surely else 0.0,
        high=min(max(2 * value - float(low), value), 1.0),
    )


def _estimate(confidence: Floats, calibration: Calibration | None, why: list[str]) -> Interval | None:
    if calibration is None:
        why.append(f"no calibration: the reference had fewer than {MIN_LABELLED} labelled rows with a mean_logprob")
        return None
    if confidence.size < MIN_LABELLED:
        why.append(f"only {confidence.size} rows have a mean_logprob, at least {MIN_LABELLED} are needed to estimate")
        return None
    place = np.searchsorted(np.array(calibration.edges), confidence, side="left")
    share = np.bincount(place, minlength=len(calibration.rows)) / confidence.size
    accuracy, rows = np.array(calibration.accuracy), np.array(calibration.rows)
    value = float(share @ accuracy)
    # Half a hit and half a miss a bin: one that was always right is not certain (Jeffreys).
    smooth = (accuracy * rows + 0.5) / (rows + 1)
    calibrated = float(share**2 @ (smooth * (1 - smooth) / rows))
    own = float(value * (1 - value)) / confidence.size
    reach = _z() * math.sqrt(calibrated + own)
    return Interval(value=value, low=max(value - reach, 0.0), high=min(value + reach, 1.0))
