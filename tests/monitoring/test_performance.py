"""Quality of a simulated classifier that knows how sure it is: against its true accuracy, with labels and without."""

import numpy as np
import pandas as pd
import pytest

from monitoring.performance import Calibration, Quality, fit_calibration, measure, wilson

CLASSES = np.array(["billing", "technical", "account", "other"])


def log(rng: np.random.Generator, rows: int, hardness: float = 0.0, overconfident: float = 1.0) -> pd.DataFrame:
    """Rows whose response is right with probability p; it says it is p ** (1 / overconfident) sure."""
    p = 1 / (1 + np.exp(hardness - rng.normal(1.5, 1.2, rows)))
    label = rng.integers(0, 4, rows)
    wrong = (label + rng.integers(1, 4, rows)) % 4
    response = np.where(rng.random(rows) < p, label, wrong)
    return pd.DataFrame(
        {"reference": CLASSES[label], "response": CLASSES[response], "mean_logprob": np.log(p) / overconfident}
    )


def accuracy(frame: pd.DataFrame) -> float:
    return float((frame["reference"] == frame["response"]).mean())


def test_a_harder_window_is_estimated_without_a_label() -> None:
    rng = np.random.default_rng(1)
    calibration = fit_calibration(log(rng, 4000, overconfident=2))
    assert calibration is not None
    assert list(calibration.accuracy) == sorted(calibration.accuracy)
    assert sum(calibration.rows) == 4000
    inside = 0
    for hardness, bias in ((0.0, 0.02), (0.3, 0.02), (0.6, 0.025), (1.0, 0.05)):
        errors = []
        for _ in range(25):
            window = log(rng, 500, hardness, overconfident=2)
            estimate = measure(window.drop(columns="reference"), calibration, seed=0).estimated_accuracy
            assert estimate is not None
            errors.append(estimate.value - accuracy(window))
            if hardness < 1:
                inside += estimate.low <= accuracy(window) <= estimate.high
        assert abs(np.mean(errors)) < bias, (hardness, np.mean(errors))
    assert inside >= 66, inside  # of 75


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(2)
    population = log(rng, 50_000)
    truth = measure(population, None, seed=0)
    held = {"accuracy": 0, "f1": 0}
    for seed in range(100):
        quality = measure(population.sample(400, random_state=seed), None, seed)
        for name in held:
            interval, true = getattr(quality, name), getattr(truth, name)
            held[name] += interval.low <= true.value <= interval.high
    assert min(held.values()) >= 89, held


def test_the_calibration_error_is_that_of_the_confidence() -> None:
    rng = np.random.default_rng(3)
    honest = measure(log(rng, 3000), None, seed=0).ece
    assert honest is not None
    assert honest.low <= 0.01
    assert honest.value < 0.04
    sure = log(rng, 3000, overconfident=3)
    error = measure(sure, None, seed=0).ece
    assert error is not None
    assert error.value == pytest.approx(float(np.exp(sure["mean_logprob"]).mean()) - accuracy(sure), abs=0.02)
    assert error.low < error.value < error.high
    assert error.low > 0.05


@pytest.mark.parametrize("rows", [100, 300, 3000])
def test_the_interval_of_the_calibration_error_claims_none_of_a_calibrated_model(rows: int) -> None:
    rng = np.random.default_rng(4)
    errors = [measure(log(rng, rows), None, seed).ece for seed in range(100)]
    assert sum(error.low == 0 for error in errors if error) >= 90


def test_f1_is_sklearns() -> None:
    from sklearn.metrics import f1_score

    frame = log(np.random.default_rng(4), 300, hardness=1)
    frame.loc[frame["response"] == "other", "response"] = "unheard"
    f1 = measure(frame, None, seed=0).f1
    assert f1 is not None
    assert f1.value == pytest.approx(f1_score(frame["reference"], frame["response"], average="macro", zero_division=0))
    assert f1.low < f1.value < f1.high


def test_wilson_is_the_interval_of_the_book() -> None:
    interval = wilson(8, 10)
    assert (interval.value, interval.low, interval.high) == pytest.approx((0.8, 0.4901625, 0.9433178), abs=1e-6)
    assert (wilson(0, 10).low, wilson(10, 10).high) == (0, 1)


def quiet(rows: int = 100) -> pd.DataFrame:
    return log(np.random.default_rng(5), rows)


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (quiet(29), "only 29 labelled rows"),
        (quiet().iloc[:0], "only 0 labelled rows"),
        (pd.DataFrame(), "only 0 labelled rows"),
        (quiet().drop(columns="response"), "only 0 labelled rows"),
        (quiet().assign(reference=None), "only 0 labelled rows"),
        (quiet().assign(mean_logprob=np.nan), "only 0 labelled rows have a mean_logprob"),
        (quiet().assign(mean_logprob=-np.inf), "only 0 labelled rows have a mean_logprob"),
        (quiet().assign(mean_logprob="high"), "only 0 rows have a mean_logprob"),
        (quiet().drop(columns="mean_logprob"), "only 0 rows have a mean_logprob"),
        (quiet().assign(response=[f"text {i}" for i in range(100)]), "104 different answers in 100 labelled rows"),
    ],
)
def test_what_cannot_be_known_is_none_with_its_reason(frame: pd.DataFrame, why: str) -> None:
    quality = measure(frame, fit_calibration(quiet(400)), seed=0)
    assert any(reason.startswith(why) for reason in quality.why), quality.why
    assert quality.rows == len(frame)
    assert None in (quality.accuracy, quality.f1, quality.ece, quality.estimated_accuracy)
    assert Quality.model_validate_json(quality.model_dump_json()) == quality


def test_numbers_as_answers_and_a_constant_confidence_are_no_trouble() -> None:
    rng = np.random.default_rng(6)
    frame = pd.DataFrame({"reference": rng.integers(0, 2, 60), "response": 1, "mean_logprob": 0.0})
    calibration = fit_calibration(frame)
    assert calibration == Calibration(edges=(), accuracy=(frame["reference"].mean(),), rows=(60,))
    quality = measure(frame, calibration, seed=0)
    assert quality.why == ()
    assert quality.accuracy is not None
    assert quality.estimated_accuracy is not None
    assert quality.estimated_accuracy.value == pytest.approx(quality.accuracy.value)
    assert fit_calibration(frame[:29]) is None
    assert measure(frame, None, seed=0).why == (
        "no calibration: the reference had fewer than 30 labelled rows with a mean_logprob",
    )
