"""A probe: held only when the loss of agreement is surely below the margin, at the rate that is stated."""

import numpy as np
import pytest
from pydantic import ValidationError

from monitoring.performance import wilson
from monitoring.probe import Agreement, Sampled, lost, probe, told
from monitoring.settings import ProbeSettings

SETTINGS = ProbeSettings()
BEFORE = Agreement(agreed=230, rows=256)


def on(agreed: int, rest: int | None = None, share: float = 0.25) -> Sampled:
    """Samples of 64 rows, of the whole window or of its slice and the rest."""
    if rest is None:
        return Sampled(drifted=Agreement(agreed=agreed, rows=64))
    return Sampled(drifted=Agreement(agreed=agreed, rows=64), rest=Agreement(agreed=rest, rows=64), share=share)


def test_a_champion_that_agrees_as_before_is_held_with_estimate_and_interval() -> None:
    found = probe(on(60), BEFORE, SETTINGS)
    assert not found.pays
    assert "agree on 60 of 64 (0.938) rows of the window, 230 of 256 (0.898) at the promotion" in found.reason
    assert f"({found.window_loss.low:.3f} to {found.window_loss.high:.3f})" in found.reason
    assert "surely below probe.margin 0.1" in found.reason


def test_a_champion_that_agrees_less_is_retrained() -> None:
    assert probe(on(45), BEFORE, SETTINGS).pays


def test_a_loss_on_the_slice_alone_or_on_the_rest_alone_is_retrained() -> None:
    assert not probe(on(60, 60), BEFORE, SETTINGS).pays
    assert probe(on(45, 63, share=0.05), BEFORE, SETTINGS).pays
    assert probe(on(63, 45, share=0.05), BEFORE, SETTINGS).pays


def test_what_a_sample_cannot_exclude_is_retrained() -> None:
    few = probe(Sampled(drifted=Agreement(agreed=9, rows=10)), BEFORE, SETTINGS)
    assert few.window_loss.value < 0.01
    assert few.pays


def test_where_the_two_never_agreed_nothing_is_held() -> None:
    never = probe(on(0), Agreement(agreed=3, rows=256), SETTINGS)
    assert never.pays
    assert never.reason.endswith("which was never above it: exact match says nothing here")


def test_without_agreement_in_the_profile_full_agreement_stands_for_it() -> None:
    assert probe(on(60), None, SETTINGS).pays
    assert not probe(on(64), None, SETTINGS).pays


def test_forcing_overrides_a_small_loss_and_says_so() -> None:
    found = probe(on(64), BEFORE, SETTINGS, force=True)
    assert found.pays
    assert found.reason.endswith("(forced)")


def test_the_expected_gain_is_the_windows_loss_of_both_samples_by_their_shares() -> None:
    found = probe(on(32, 58, share=0.25), BEFORE, SETTINGS)
    assert found.expected_gain.value == pytest.approx(230 / 256 - (0.25 * 32 + 0.75 * 58) / 64)
    assert found.expected_gain.low <= found.expected_gain.value <= found.expected_gain.high
    assert probe(on(64), BEFORE, SETTINGS).expected_gain.value == 0


def test_without_agreement_in_the_profile_no_gain_is_expected() -> None:
    assert probe(on(55), None, SETTINGS).expected_gain is None


def test_an_agreement_that_rose_from_next_to_nothing_is_held() -> None:
    assert not probe(on(55), Agreement(agreed=10, rows=256), SETTINGS).pays


def test_the_interval_of_a_difference_is_newcombes() -> None:
    """His example: 56 of 70 against 48 of 80, method 10, 95 %: 0.0524 to 0.3339; here of 95 % shares too."""
    interval = lost(wilson(56, 70), wilson(48, 80))
    assert interval.value == pytest.approx(0.2)
    assert interval.low == pytest.approx(0.0524, abs=1e-4)
    assert interval.high == pytest.approx(0.3339, abs=1e-4)


@pytest.mark.parametrize(
    ("before", "slice_now", "rest_now"), [(0.9, 0.9, 0.9), (0.97, 0.5, 0.9), (0.6, 0.5, 0.55), (0.99, 0.99, 0.99)]
)
def test_the_intervals_cover_the_true_losses_in_about_nine_of_ten_probes(
    before: float, slice_now: float, rest_now: float
) -> None:
    rng = np.random.default_rng(0)
    times, share = 3000, 0.3
    window = share * slice_now + (1 - share) * rest_now
    covered = np.zeros(2)
    for then, of_slice, of_rest in zip(
        *(rng.binomial(rows, p, times) for rows, p in ((256, before), (64, slice_now), (64, rest_now))), strict=True
    ):
        found = probe(on(of_slice, of_rest, share), Agreement(agreed=then, rows=256), SETTINGS)
        covered += [
            found.slice_loss.low <= before - slice_now <= found.slice_loss.high,
            found.window_loss.low <= before - window <= found.window_loss.high,
        ]
    assert all(0.88 <= rate <= 0.975 for rate in covered / times)


@pytest.mark.parametrize("before", [0.6, 0.8, 0.9, 0.97])
@pytest.mark.parametrize("lost_on", ["slice", "window"])
def test_a_loss_of_the_margin_is_held_in_at_most_one_of_twenty_probes(before: float, lost_on: str) -> None:
    rng = np.random.default_rng(1)
    times = 2000
    now = before - SETTINGS.margin
    draws = (
        rng.binomial(256, before, times),
        rng.binomial(64, now, times),
        rng.binomial(64, before if lost_on == "slice" else now, times),
    )
    held = sum(
        not probe(on(of_slice, of_rest), Agreement(agreed=then, rows=256), SETTINGS).pays
        for then, of_slice, of_rest in zip(*draws, strict=True)
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
