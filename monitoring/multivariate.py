"""Drift that no single column shows, on feature rows of both sides: MMD and a domain classifier.

Both see the rows through `encode`, which takes everything from both sides pooled: so each row is treated alike
whichever side it is from, and what the tests find is in the rows and not in the encoding.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import BaseModel, ConfigDict
from scipy.special import ndtr, ndtri

from monitoring.errors import InputError
from monitoring.features import floats, is_numeric, texts

Matrix = npt.NDArray[np.float32]

MAX_ROWS = 5000  # of either side; more are sampled
MAX_CATEGORIES = 20  # of a column; the others are one
PERMUTATIONS = 200
MIN_ROWS = 30
FOLDS = 5


@dataclass(frozen=True)
class Encoded:
    """Rows of both sides as numbers; `names` says what the columns are."""

    reference: Matrix  # (reference rows, columns)
    current: Matrix  # (current rows, columns)
    names: tuple[str, ...]


class Mmd(BaseModel):
    """Maximum mean discrepancy of two samples; None where they could not be compared, and `why`."""

    model_config = ConfigDict(frozen=True)

    distance: float | None  # about 0 without drift
    p: float | None
    reference_rows: int  # that were used
    current_rows: int
    why: str = ""


class DomainAuc(BaseModel):
    """How well a classifier tells the sides apart, .5 not at all; None where it could not be trained, and `why`."""

    model_config = ConfigDict(frozen=True)

    auc: float | None
    low: float | None  # 95 % interval
    high: float | None
    p: float | None  # one-sided, of AUC <= .5
    reference_rows: int
    current_rows: int
    why: str = ""


def encode(reference: pd.DataFrame, current: pd.DataFrame) -> Encoded:
    """Return the columns that both sides have, with the same type, as matrices of numbers.

    A numeric column becomes the normal score of its rank among both sides, so that an outlier is one large value
    among others; a missing or infinite value is 0, and one where a column `NAME missing` says so. A category is
    one-hot over the most frequent ones of both sides, `NAME = VALUE`; the others share `NAME other`, and a
    missing one is a category too.
    """
    rows = len(reference)
    columns: dict[str, npt.NDArray[np.float64]] = {}
    for name in reference.columns:
        if name not in current or is_numeric(reference[name]) != is_numeric(current[name]):
            continue
        if is_numeric(reference[name]):
            columns |= _encode_numbers(str(name), np.concatenate([floats(reference[name]), floats(current[name])]))
        else:
            values = pd.concat([texts(reference[name]), texts(current[name])], ignore_index=True)
            columns |= _encode_categories(str(name), values)
    varying = {name: values for name, values in columns.items() if values.size and np.ptp(values) > 0}
    matrix = np.empty((rows + len(current), len(varying)), np.float32)
    for place, values in enumerate(varying.values()):
        matrix[:, place] = values
    return Encoded(matrix[:rows], matrix[rows:], tuple(varying))


def mmd(reference: pd.DataFrame, current: pd.DataFrame, seed: int, features: int = 512) -> Mmd:
    """Return the maximum mean discrepancy of the feature rows, with a permutation p-value.

    The kernel is Gaussian, of the median distance between rows and of half of it, in `features` random Fourier
    features (Gretton et al. 2012; Rahimi and Recht 2007). The p-value is exact: without drift it is at most alpha
    with probability alpha or less; the smallest is 1 / (PERMUTATIONS + 1). Sides of more than MAX_ROWS are sampled.
    Raises InputError when `features` is below 2.
    """
    if features < 2:
        raise InputError(f"features = {features} random features make no kernel: ask for 2 or more, 512 by default")
    rng = np.random.default_rng(seed)
    then, now = _sample(reference, rng), _sample(current, rng)
    n, m = len(then), len(now)
    encoded = encode(then, now)
    why = _obstacle(encoded)
    if why:
        return Mmd(distance=None, p=None, reference_rows=n, current_rows=m, why=why)
    rows = np.concatenate([encoded.reference, encoded.current])
    mapped = _fourier(rows, features, rng)  # (n + m, features)
    mapped -= mapped.mean(axis=0)
    # The first column says who is who, the others shuffle that; with the mean removed one side says it all.
    mine = np.zeros((n + m, PERMUTATIONS + 1), np.float32)
    mine[:n] = 1
    mine[:, 1:] = rng.permuted(mine[:, 1:], axis=0)
    sums = np.asarray(mapped.T @ mine, np.float64)  # (features, 1 + permutations)
    squares = np.asarray((sums**2).sum(axis=0)) * (1 / n + 1 / m) ** 2
    # Equal up to rounding is equal: rows that repeat give the same value in another order.
    larger = int(np.sum(squares[1:] >= squares[0] * (1 - 1e-5)))
    return Mmd(
        distance=float(np.sqrt(max(squares[0] - squares[1:].mean(), 0.0))),
        p=(1 + larger) / (1 + PERMUTATIONS),
        reference_rows=n,
        current_rows=m,
    )


def domain_auc(reference: pd.DataFrame, current: pd.DataFrame, seed: int) -> DomainAuc:
    """Return the area under the ROC curve of boosted trees that tell window from reference, cross-validated.

    Each row is scored by trees that have not seen it and ranked among the rows of its fold; the interval is
    DeLong's (1988), summed over the folds and made 1.5 times as wide, since folds share the rows that their trees
    learned from (Nadeau and Bengio 2003; without it 11 % of p-values were below 5 % without drift).
    Sides of more than MAX_ROWS are sampled.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import StratifiedKFold
    from threadpoolctl import threadpool_limits

    rng = np.random.default_rng(seed)
    then, now = _sample(reference, rng), _sample(current, rng)
    n, m = len(then), len(now)
    encoded = encode(then, now)
    why = _obstacle(encoded)
    if why:
        return DomainAuc(auc=None, low=None, high=None, p=None, reference_rows=n, current_rows=m, why=why)
    rows = np.concatenate([encoded.reference, encoded.current])
    sides = np.repeat([0, 1], [n, m])
    areas, variances = [], []
    for train, test in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(rows, sides):
        trees = HistGradientBoostingClassifier(
            max_iter=50, max_leaf_nodes=15, min_samples_leaf=20, early_stopping=False, random_state=seed
        )
        with threadpool_limits(1):  # so few rows are slower on several threads, ten times so on a busy machine
            scores = trees.fit(rows[train], sides[train]).decision_function(rows[test])
        area, variance = _delong(scores[sides[test] == 0], scores[sides[test] == 1])
        areas.append(area)
        variances.append(variance)
    auc, error = float(np.mean(areas)), float(np.sqrt(np.mean(variances) * (1 / FOLDS + 1 / (FOLDS - 1))))
    # Where all are told apart no variance is left; one row in a fold could still have been confused.
    error = max(error, 1 / min(n, m))
    reach = float(ndtri(0.975)) * error
    return DomainAuc(
        auc=auc,
        low=max(auc - reach, 0.0),
        high=min(auc + reach, 1.0),
        p=float(ndtr((0.5 - auc) / error)),
        reference_rows=n,
        current_rows=m,
    )


def _sample(frame: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    named = frame.rename(columns=str)
    named = named.loc[:, ~named.columns.duplicated()]
    return named if len(named) <= MAX_ROWS else named.iloc[rng.permutation(len(named))[:MAX_ROWS]]


def _obstacle(encoded: Encoded) -> str:
    """Say why the sides cannot be compared; empty when they can be."""
    for place, side in (("reference", encoded.reference), ("window", encoded.current)):
        if len(side) < MIN_ROWS:
            return f"only {len(side)} rows in the {place}, at least {MIN_ROWS} are needed"
    return "" if encoded.names else "no column that both sides have varies"


def _encode_numbers(name: str, values: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
    present = np.isfinite(values)
    known: npt.NDArray[np.float64] = np.asarray(values[present])
    scores = np.zeros(len(values))
    ordered = np.sort(known)
    ranks = (np.searchsorted(ordered, known, "left") + np.searchsorted(ordered, known, "right")) / 2
    scores[present] = ndtri(ranks / max(known.size, 1))
    return {name: scores} if present.all() else {name: scores, f"{name} missing": (~present).astype(float)}


def _encode_categories(name: str, values: pd.Series) -> dict[str, npt.NDArray[np.float64]]:
    counts = values.value_counts()
    frequent = sorted(counts.index, key=lambda value: (-counts[value], value))[:MAX_CATEGORIES]
    hot = {f"{name} = {value}": (values == value).to_numpy(dtype=float) for value in frequent}
    missing = values.isna().to_numpy(dtype=float)
    other = 1.0 - missing - sum(hot.values())
    return {**hot, f"{name} other": other, f"{name} missing": missing}


def _fourier(rows: Matrix, features: int, rng: np.random.Generator) -> Matrix:
    """Random Fourier features of both kernels, shape (rows, features)."""
    pairs = rng.integers(0, len(rows), (2, 1000))
    distances = np.linalg.norm(rows[pairs[0]] - rows[pairs[1]], axis=1)
    apart = distances[distances > 0]
    median = float(np.median(apart)) if apart.size else 1.0
    widths = np.where(np.arange(features) % 2, median, median / 2)
    directions = (rng.normal(size=(rows.shape[1], features)) / widths).astype(np.float32)
    phases = rng.uniform(0, 2 * np.pi, features).astype(np.float32)
    return np.asarray(np.sqrt(2 / features) * np.cos(rows @ directions + phases), np.float32)


def _delong(reference: npt.NDArray[np.float64], current: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Area under the ROC curve of two sets of scores and its variance, by placements (DeLong et al. 1988)."""
    below, above = np.sort(reference), np.sort(current)
    of_current = (np.searchsorted(below, current, "left") + np.searchsorted(below, current, "right")) / 2 / len(below)
    of_reference = (np.searchsorted(above, reference, "left") + np.searchsorted(above, reference, "right")) / 2
    of_reference = 1 - of_reference / len(above)
    variance = of_current.var(ddof=1) / len(above) + of_reference.var(ddof=1) / len(below)
    return float(of_current.mean()), float(variance)
