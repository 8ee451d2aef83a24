"""A probe: held only when the loss of agreement is surely below the margin, at the rate that is stated."""

import numpy as np
import pytest
from pydantic import ValidationError

from monitoring.probe import Agreement, lost, probe, told
from monitoring.settings import ProbeSettings

SETTINGS = ProbeSettings()
BEFORE = Agreement(agreed=230, rows=256)


def seen(agreed: int, before: Agreement | None = BEFORE, **options: bool) -> bool:
    return probe(Agreement(agreed=agreed, rows=64), before, SETTINGS, 1.0, **options).pays


def test_a_champion_that_agrees_as_before_is_held_with_estimate_and_interval() -> None:
    found = probe(Agreement(agreed=60, rows=64), BEFORE, SETTINGS, 1.0)
    assert not found.pays
    assert "agree on 60 of 64 rows" in found.reason
    assert f"{found.loss.low:.3f} to {found.loss.high:.3f}" in found.reason
    assert "surely below probe.margin 0.1" in found.reason


def test_a_champion_that_agrees_less_is_retrained() -> None:
    assert seen(45)


def test_what_a_sample_cannot_exclude_is_retrained() -> None:
    few = probe(Agreement(agreed=9, rows=10), BEFORE, SETTINGS, 1.0)
    assert few.loss.value < 0.01
    assert few.pays


def test_without_agreement_in_the_profile_full_agreement_stands_for_it() -> None:
    assert seen(60, None)
    assert not seen(64, None)


def test_forcing_overrides_a_small_loss_and_says_so() -> None:
    found = probe(Agreement(agreed=64, rows=64), BEFORE, SETTINGS, 1.0, force=True)
    assert found.pays
    assert found.reason.endswith("(forced)")


def test_the_expected_gain_is_the_loss_on_the_slices_share_of_the_window() -> None:
    found = probe(Agreement(agreed=32, rows=64), BEFORE, SETTINGS, 0.25)
    assert found.expected_gain.value == pytest.approx((230 / 256 - 0.5) * 0.25)
    assert found.expected_gain.low <= found.expected_gain.value <= found.expected_gain.high
    assert probe(Agreement(agreed=64, rows=64), BEFORE, SETTINGS, 0.25).expected_gain.value == 0


def test_the_interval_of_a_difference_is_newcombes() -> None:
    """His example: 56 of 70 against 48 of 80, method 10, 95 %: 0.0524 to 0.3339; here at 90 %."""
    interval = lost(Agreement(agreed=56, rows=70), Agreement(agreed=48, rows=80))
    assert interval.value == pytest.approx(0.2)
    assert 0.0524 < interval.low < 0.09
    assert 0.30 < interval.high < 0.3339


@pytest.mark.parametrize(("before", "now"), [(0.9, 0.9), (0.97, 0.7), (0.6, 0.5), (0.99, 0.99)])
def test_the_interval_covers_the_true_loss_in_about_nine_of_ten_probes(before: float, now: float) -> None:
    rng = np.random.default_rng(0)
    times = 3000
    covered = 0
    for then, current in zip(rng.binomial(256, before, times), rng.binomial(64, now, times), strict=True):
        interval = lost(Agreement(agreed=then, rows=256), Agreement(agreed=current, rows=64))
        covered += interval.low <= before - now <= interval.high
    assert 0.88 <= covered / times <= 0.97


@pytest.mark.parametrize("before", [0.6, 0.8, 0.9, 0.97])
def test_a_loss_of_the_margin_is_held_in_at_most_one_of_twenty_probes(before: float) -> None:
    rng = np.random.default_rng(1)
    times = 4000
    held = sum(
        not probe(Agreement(agreed=now, rows=64), Agreement(agreed=then, rows=256), SETTINGS, 1.0).pays
        for then, now in zip(
            rng.binomial(256, before, times), rng.binomial(64, before - SETTINGS.margin, times), strict=True
        )
    )
    assert held / times <= 0.05 + 2.58 * (0.05 * 0.95 / times) ** 0.5


def test_agreement_of_more_rows_than_there_are_is_refused() -> None:
    with pytest.raises(ValidationError, match="agreed 5 is above rows 4"):
        Agreement(agreed=5, rows=4)


def test_what_is_not_known_is_left_out_of_the_words() -> None:
    assert told({"gain": None, "tokens": 1200, "seconds": None}) == "1,200 teacher tokens"
    assert told({"gain": 0.15, "tokens": 0, "seconds": 14.2}) == (
        "+15.0 points of exact match, 0 teacher tokens, 14 s of training"
    )
