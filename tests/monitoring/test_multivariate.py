"""MMD and the domain classifier by simulation: quiet where nothing moved, sure where only the dependence did."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from monitoring.errors import InputError
from monitoring.multivariate import domain_auc, encode, mmd


def world(rng: np.random.Generator, rows: int, correlation: float = 0.8, numbers: int = 6) -> pd.DataFrame:
    """Independent normal columns but for the first two, one heavy-tailed with holes, and one of categories."""
    values = rng.normal(size=(rows, numbers))
    values[:, 1] = correlation * values[:, 0] + np.sqrt(1 - correlation**2) * values[:, 1]
    frame = pd.DataFrame(values, columns=[f"x{i}" for i in range(numbers)])
    frame["holes"] = np.where(rng.random(rows) < 0.3, np.nan, rng.standard_t(2, rows))
    frame["label"] = rng.choice(np.array([*"abcd", None], dtype=object), rows)
    return frame


def test_mmd_without_drift_alarms_at_its_level() -> None:
    rng = np.random.default_rng(1)
    found = [mmd(world(rng, 200), world(rng, 120), seed, features=128) for seed in range(100)]
    p_values = np.array([result.p for result in found], float)
    assert np.sum(p_values <= 0.05) <= binom.ppf(0.995, 100, 0.05)
    assert 0.4 < p_values.mean() < 0.6
    assert np.mean([result.distance for result in found if result.distance is not None]) < 0.05


def test_a_correlation_flip_is_seen_though_no_column_moved() -> None:
    rng = np.random.default_rng(2)
    for seed in range(5):
        result = mmd(world(rng, 1000, 0.8, numbers=20), world(rng, 1000, -0.8, numbers=20), seed)
        assert result.p == pytest.approx(1 / 201)
    seen = domain_auc(world(rng, 600, 0.8), world(rng, 600, -0.8), seed=0)
    assert seen.auc is not None
    assert seen.low is not None
    assert seen.low > 0.75


def test_the_domain_classifier_is_as_good_as_chance_without_drift() -> None:
    rng = np.random.default_rng(3)
    found = [domain_auc(world(rng, 150), world(rng, 150), seed) for seed in range(6)]
    assert np.mean([result.auc for result in found if result.auc is not None]) == pytest.approx(0.5, abs=0.03)
    assert sum((result.p or 0) < 0.05 for result in found) <= binom.ppf(0.99, 6, 0.05)


def test_sides_that_share_nothing_are_told_apart_for_certain() -> None:
    rng = np.random.default_rng(4)
    then = world(rng, 200)
    now = world(rng, 200).assign(x0=lambda frame: frame["x0"] + 100)
    result = domain_auc(then, now, seed=0)
    assert result.auc == pytest.approx(1, abs=0.005)
    assert result.low is not None
    assert result.low > 0.9
    assert result.p is not None
    assert result.p < 1e-6


@pytest.mark.parametrize("outlier", [1e6, -1e300, np.inf])
def test_an_outlier_neither_hides_a_shift_nor_raises_an_alarm(outlier: float) -> None:
    rng = np.random.default_rng(5)
    then, now = world(rng, 500), world(rng, 400)
    quiet, shifted = now.copy(), now.assign(x0=now["x0"] + 1)
    before = mmd(then, now, seed=0)
    quiet.loc[0, "x0"] = shifted.loc[0, "x0"] = outlier
    after = mmd(then, quiet, seed=0)
    assert after.p is not None
    assert after.p == pytest.approx(before.p, abs=0.1)
    assert mmd(then, shifted, seed=0).p == pytest.approx(1 / 201)


def test_the_encoding_says_what_its_columns_are() -> None:
    then = pd.DataFrame({"x": [1.0, 2, 3], "y": [1.0, np.nan, np.inf], "label": ["a", "b", None], "gone": 1, "same": 1})
    now = pd.DataFrame({"x": [4.0], "y": [5.0], "label": ["c"], "same": 1, "new": 2})
    encoded = encode(then, now)
    assert encoded.names == ("x", "y", "y missing", "label = a", "label = b", "label = c", "label missing")
    assert encoded.reference.shape == (3, 7)
    assert list(encoded.reference[:, 2]) == [0, 1, 1]
    assert list(encoded.current[0, 3:]) == [0, 0, 1, 0]
    assert np.isfinite(encoded.reference).all()
    assert np.all(np.diff(np.append(encoded.reference[:, 0], encoded.current[0, 0])) > 0)


def test_a_result_is_the_same_for_the_same_seed_and_large_sides_are_sampled() -> None:
    rng = np.random.default_rng(6)
    then, now = world(rng, 5200), world(rng, 300)
    result = mmd(then, now, seed=7)
    assert result == mmd(then, now, seed=7)
    assert (result.reference_rows, result.current_rows) == (5000, 300)


def quiet() -> pd.DataFrame:
    return world(np.random.default_rng(8), 100)


@pytest.mark.parametrize(
    ("current", "why"),
    [
        (quiet()[:29], "only 29 rows in the window"),
        (pd.DataFrame(), "only 0 rows in the window"),
        (quiet()[["x0"]].rename(columns={"x0": "y"}), "no column that both sides have varies"),
        (quiet()[["x0"]].assign(x0="text"), "no column that both sides have varies"),
    ],
)
def test_what_cannot_be_compared_is_said(current: pd.DataFrame, why: str) -> None:
    for result in (mmd(quiet(), current, 0), domain_auc(quiet(), current, 0)):
        assert result.why.startswith(why)
        assert result.p is None


def test_no_kernel_of_no_features() -> None:
    with pytest.raises(InputError, match="features = 0"):
        mmd(quiet(), quiet(), 0, features=0)
