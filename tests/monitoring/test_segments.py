"""Which segments carry a drift: the value in which it happened is named, and no other."""

import numpy as np
import pandas as pd
import pytest

from monitoring.drift import compare, compare_rows
from monitoring.drift_report import DriftReport
from monitoring.profile import ReferenceProfile
from monitoring.segments import carrying
from monitoring.settings import DriftSettings
from monitoring.tally import count

SETTINGS = DriftSettings()
CHANNELS = ["app", "mail", "phone"]


def world(rows: int, seed: int, *, drifted: str | None = None) -> pd.DataFrame:
    """Traffic in three channels; in the drifted one most answers are of a class that was rare."""
    rng = np.random.default_rng(seed)
    channel = rng.choice(CHANNELS, rows, p=[0.3, 0.5, 0.2])
    answer = rng.choice(["billing", "login", "other"], rows, p=[0.5, 0.4, 0.1])
    moved = (channel == drifted) & (rng.random(rows) < 0.7)
    return pd.DataFrame(
        {
            "response": np.where(moved, "other", answer).astype(object),
            "prompt_chars": rng.normal(100, 20, rows) + 30 * moved,
            "meta_channel": channel.astype(object),
            "meta_user": [f"user {number}" for number in rng.integers(0, rows, rows)],
        }
    )


def report(now: pd.DataFrame, then: pd.DataFrame | None = None) -> DriftReport:
    profile = ReferenceProfile.build(
        world(4000, 0) if then is None else then,
        window="then",
        model_version="1",
        max_categories=50,
        sample_rows=3000,
        seed=0,
    )
    tally = count(profile, now, sample_rows=3000, seed=0)
    return compare_rows(profile, tally.sample, compare(profile, tally, "now", SETTINGS), SETTINGS)


def test_the_segment_that_drifted_is_named_and_no_other() -> None:
    (segment,) = report(world(2000, 1, drifted="app")).segments
    assert (segment.column, segment.value, segment.drifted_column) == ("meta_channel", "app", "response")
    assert segment.now == pytest.approx(0.3, abs=0.03)
    assert segment.psi_lower > 1
    assert str(segment).startswith("meta_channel = app (29% of the rows): response PSI 1.8")


def test_a_quiet_window_names_no_segment() -> None:
    assert report(world(2000, 2)).segments == []


def test_a_drift_of_all_segments_alike_names_them_all() -> None:
    now = world(3000, 3)
    now["response"] = np.where(np.random.default_rng(4).random(3000) < 0.5, "other", now["response"])
    assert {segment.value for segment in report(now).segments} == {*CHANNELS}


def test_a_segment_that_only_grew_is_the_columns_own_drift() -> None:
    now = world(6000, 5)
    now = now[(now["meta_channel"] == "phone") | (np.arange(6000) % 4 == 0)]
    found = report(now)
    assert found.drifted_columns == ["meta_channel"]
    assert found.segments == []


@pytest.mark.parametrize(("then_rows", "now_rows", "judged"), [(49, 600, False), (600, 49, False), (60, 60, True)])
def test_a_segment_of_too_few_rows_on_either_side_is_not_judged(then_rows: int, now_rows: int, judged: bool) -> None:
    """Mail has drifted as well, so that there is a drifted column."""

    def with_app(frame: pd.DataFrame, rows: int, seed: int, drifted: str | None) -> pd.DataFrame:
        app = world(4000, seed, drifted=drifted)
        return pd.concat([frame[frame["meta_channel"] != "app"], app[app["meta_channel"] == "app"].head(rows)])

    then = with_app(world(3000, 0), then_rows, 10, None)
    now = with_app(world(2000, 6, drifted="mail"), now_rows, 11, "app")
    assert {segment.value for segment in report(now, then).segments} == {"mail", *(["app"] if judged else [])}


@pytest.mark.parametrize(("values", "named"), [(50, ["7.0"]), (51, [])])
def test_a_column_of_more_than_50_values_makes_no_segments(values: int, named: list[str]) -> None:
    def shops(seed: int, drifted: int | None) -> pd.DataFrame:
        frame = world(3000, seed).drop(columns=["meta_channel", "meta_user"])
        frame["meta_shop"] = np.where(np.arange(3000) < 1000, 7, np.arange(3000) % values).astype(float)
        frame.loc[frame["meta_shop"] == drifted, "response"] = "other"
        return frame

    assert [segment.value for segment in report(shops(13, 7), shops(12, None)).segments] == named


def test_rows_without_a_value_are_a_segment_of_their_own() -> None:
    then, now = world(4000, 0), world(2000, 8, drifted="app")
    for frame in (then, now):
        frame["meta_channel"] = frame["meta_channel"].where(frame["meta_channel"] != "app", None)
    (segment,) = report(now, then).segments
    assert (segment.column, segment.value) == ("meta_channel", None)
    assert str(segment).startswith("meta_channel = (missing) (27% of the rows): response PSI 2.0")
    assert segment.before == pytest.approx(0.3, abs=0.03)
    assert segment.rows == now["meta_channel"].isna().sum()


def test_what_the_profile_does_not_tell_apart_is_no_segment() -> None:
    """A value that is called OTHER is not told from the rare ones."""
    then, now = world(4000, 0), world(2000, 9, drifted="app")
    for frame in (then, now):
        frame["meta_channel"] = frame["meta_channel"].replace("app", "OTHER")
    assert report(now, then).segments == []


def test_a_long_value_is_cut_where_it_is_shown_and_only_there() -> None:
    long = "x" * 20_000
    then, now = world(4000, 0), world(2000, 1, drifted="app")
    for frame in (then, now):
        frame["meta_channel"] = frame["meta_channel"].replace("app", long)
    (segment,) = report(now, then).segments
    assert segment.value == long
    assert str(segment).startswith(f"meta_channel = {'x' * 59}\u2026 (29% of the rows)")


def tenants(rng: np.random.Generator, rows: int, drifted: list[int]) -> pd.DataFrame:
    """Rows of 20 tenants in six columns, all of which have drifted in some of the tenants."""
    tenant = rng.integers(0, 20, rows)
    shift = 3.0 * np.isin(tenant, drifted)
    frame = pd.DataFrame({f"x{at}": rng.normal(size=rows) + shift for at in range(6)})
    return frame.assign(meta_tenant=[str(number) for number in tenant])


def test_two_of_20_tenants_that_drift_are_named_and_hardly_ever_another() -> None:
    """Many segments times many columns are many tests: uncorrected, another one is named in half of the windows."""
    rng, windows, wrong = np.random.default_rng(14), 20, 0
    for _ in range(windows):
        profile = ReferenceProfile.build(
            tenants(rng, 2400, []), window="then", model_version="1", max_categories=50, sample_rows=2400, seed=0
        )
        found = carrying(profile, tenants(rng, 1600, [3, 4]), [f"x{at}" for at in range(6)], SETTINGS)
        named = {segment.value for segment in found}
        assert {"3", "4"} <= named
        wrong += named != {"3", "4"}
    assert wrong <= 1, f"{wrong} of {windows}"


def test_numbers_are_segments_by_their_value() -> None:
    numbered = {name: float(at) for at, name in enumerate(CHANNELS)}
    then, now = world(4000, 0), world(2000, 7, drifted="mail")
    for frame in (then, now):
        frame["meta_channel"] = frame["meta_channel"].map(numbered)
    assert [segment.value for segment in report(now, then).segments] == ["1.0"]
