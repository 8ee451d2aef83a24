"""What carries a drift: the cells are named, and their terms make up the PSI."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from monitoring.attribution import lie_in
from monitoring.drift import compare
from monitoring.drift_report import ColumnDrift
from monitoring.profile import ReferenceProfile
from monitoring.settings import DriftSettings
from monitoring.tally import count


def column(then: pd.Series, now: pd.Series) -> ColumnDrift:
    profile = ReferenceProfile.build(
        then.to_frame("x"), window="then", model_version="1", max_categories=50, sample_rows=100, seed=0
    )
    return compare(profile, now.to_frame("x"), "now", DriftSettings()).columns[0]


def test_the_bin_that_gained_most_is_named_with_its_shares() -> None:
    rng = np.random.default_rng(0)
    now = np.append(rng.normal(size=700), rng.uniform(2.5, 3, 300))
    first = column(pd.Series(rng.normal(size=2000)), pd.Series(now)).moved[0]
    assert first.cell.startswith("above 1.3")
    assert first.before == pytest.approx(0.1, abs=0.01)
    assert first.now == pytest.approx(0.37, abs=0.02)


def test_new_and_vanished_and_missing_categories_are_named() -> None:
    rng = np.random.default_rng(1)
    then = pd.Series(rng.choice([*"abcd"], 1000))
    now = then.where(then != "a", "new").where(rng.random(1000) > 0.2, None)
    cells = {cell.cell: (cell.before, cell.now) for cell in column(then, now).moved}
    assert set(cells) == {"OTHER (new)", "a", "missing"}
    assert cells["a"][1] == 0
    assert cells["OTHER (new)"][0] == 0


def test_the_terms_add_up_to_the_psi_where_all_cells_are_shown() -> None:
    rng = np.random.default_rng(2)
    then, now = (pd.Series(rng.choice([*"ab"], rows, p=[a, 1 - a])) for rows, a in ((900, 0.5), (600, 0.7)))
    found = column(then, now)
    assert sum(cell.psi for cell in found.moved) == pytest.approx(found.psi, rel=0.1)


LONG = "a" * 100


def repeated(**times: int) -> pd.Series:
    """Each word as often as it says; `none` is missing."""
    return pd.Series([None if word == "none" else word for word in times for _ in range(times[word])], dtype=object)


@pytest.mark.parametrize(
    ("then", "now", "told"),
    [
        (repeated(mail=500, app=500), repeated(mail=900, app=100), {"mail", "app"}),
        (repeated(mail=500, app=500), repeated(mail=260, app=250, fax=490), {"OTHER (fax)", "app", "mail"}),
        (repeated(mail=500, app=500), repeated(mail=260, app=250, fax=200, telex=290), {"OTHER (telex, fax)"}),
        (repeated(mail=990, none=10), repeated(mail=600, none=400), {"mail", "missing"}),
        (repeated(mail=990, a=5, b=5), repeated(mail=400, a=3, b=1, none=2, fax=94), {"OTHER (fax)", "a, b, missing"}),
        (repeated(mail=990, OTHER=400, missing=400), repeated(mail=990, none=800), {"missing", "'OTHER'", "'missing'"}),
        (repeated(mail=500, **{LONG: 500}), repeated(mail=900, **{LONG: 100}), {"mail", "a" * 59 + "\u2026"}),
    ],
)
def test_cells_are_called_by_the_categories_that_are_in_them(then: pd.Series, now: pd.Series, told: set[str]) -> None:
    assert told <= {cell.cell for cell in column(then, now).moved}


def test_a_pool_of_many_says_how_many_have_values_and_what_is_new() -> None:
    rare = {f"r{at}": 6 for at in range(10)}
    found = column(repeated(mail=1940, **rare), repeated(mail=900, **dict.fromkeys(rare, 9), fax=6)).moved
    assert str(found[0]) == "11 rare categories (new: fax) 3.0% -> 9.6%"


def test_of_many_new_categories_the_most_frequent_are_named_and_none_that_may_tell_on_a_person() -> None:
    new = {"fax": 90, "telex": 80, "post": 70, "visit": 60}
    then = repeated(mail=500, app=500)
    named = {cell.cell for cell in column(then, repeated(mail=400, app=300, **new)).moved}
    assert "OTHER (fax, telex, post, \u2026)" in named
    once = {f"Ann Example {at}": 1 for at in range(300)}
    assert "OTHER" in {cell.cell for cell in column(then, repeated(mail=400, app=300, **once)).moved}
    shrunk = column(repeated(mail=500, **once), repeated(mail=950, fax=50)).moved
    assert "OTHER" in {cell.cell for cell in shrunk}, "what is new in it did not make it grow"
    long = {f"{at}{LONG * 200}": 90 for at in range(4)}
    assert all(len(cell.cell) < 80 for cell in column(then, repeated(mail=400, app=300, **long)).moved)


def numbers(rng: np.random.Generator) -> tuple[pd.Series, pd.Series]:
    return pd.Series(rng.normal(size=2000)), pd.Series(np.append(rng.normal(1, 1, 900), [np.nan] * 100))


def close_numbers(rng: np.random.Generator) -> tuple[pd.Series, pd.Series]:
    """Edges that are the same in four digits; what grew lies between them, beside what shrank."""
    now = np.append(rng.normal(size=500), rng.uniform(0.02, 0.2, 500))
    return pd.Series(rng.normal(size=2000) + 1e6), pd.Series(now + 1e6)


def categories(rng: np.random.Generator) -> tuple[pd.Series, pd.Series]:
    then, now = rng.choice([*"abcd"], 2000), rng.choice([*"ab", "new", "newer"], 1000)
    return pd.Series(then, dtype=object), pd.Series(now, dtype=object).where(rng.random(1000) > 0.1)


def many_rare(rng: np.random.Generator) -> tuple[pd.Series, pd.Series]:
    """The rare ones are compared as one, and grow."""
    rare = [f"r{at}" for at in range(10)]
    return repeated(mail=1940, **dict.fromkeys(rare, 6)), repeated(mail=910, **dict.fromkeys(rare, 9))


def few_rare(rng: np.random.Generator) -> tuple[pd.Series, pd.Series]:
    return repeated(mail=1990, a=5, b=5), repeated(mail=993, a=2, b=1, none=4)


def pooled_with_a_frequent_one(rng: np.random.Generator) -> tuple[pd.Series, pd.Series]:
    return repeated(mail=1000, app=1000), repeated(mail=900, app=100)


def named_alike(rng: np.random.Generator) -> tuple[pd.Series, pd.Series]:
    """Long values that begin alike, and values that are called as the cells are."""
    alike = [f"{LONG}1", f"{LONG}2", "OTHER", "missing", "mail, app", "OTHER (fax)"]
    then = repeated(**dict.fromkeys(alike, 300))
    times = dict(zip(alike, (500, 100, 100, 100, 100, 100), strict=True))
    return then, repeated(**times, none=400, fax=400)


@pytest.mark.parametrize(
    "world",
    [numbers, close_numbers, categories, many_rare, few_rare, pooled_with_a_frequent_one, named_alike],
    ids=lambda world: world.__name__,
)
def test_the_rows_in_the_cells_that_grew_are_as_many_as_the_cells_say(
    world: Callable[[np.random.Generator], tuple[pd.Series, pd.Series]],
) -> None:
    then, now = world(np.random.default_rng(3))
    profile = ReferenceProfile.build(
        then.to_frame("x"), window="then", model_version="1", max_categories=50, sample_rows=100, seed=0
    )
    tally = count(profile, now.to_frame("x"), sample_rows=100, seed=0)
    found = compare(profile, tally, "now", DriftSettings()).columns[0]
    sides = profile.columns["x"], profile.columns["x"].counted, tally.columns["x"].counted
    inside = lie_in(found.moved, now, *sides, bins=10)
    grown = sum(cell.now for cell in found.moved if cell.now > cell.before)
    values = now.notna().sum() if found.kind == "numeric" else len(now)
    assert inside.sum() / values == pytest.approx(grown, abs=1e-9)
    assert 0 < inside.mean() < 1
    assert len({cell.cell for cell in found.moved}) == len(found.moved)
