"""What carries a drift: the cells are named, and their terms make up the PSI."""

import numpy as np
import pandas as pd
import pytest

from monitoring.attribution import lie_in
from monitoring.drift import ColumnDrift, compare
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
    assert set(cells) == {"OTHER", "a", "missing"}
    assert cells["a"][1] == 0
    assert cells["OTHER"][0] == 0


def test_the_terms_add_up_to_the_psi_where_all_cells_are_shown() -> None:
    rng = np.random.default_rng(2)
    then, now = (pd.Series(rng.choice([*"ab"], rows, p=[a, 1 - a])) for rows, a in ((900, 0.5), (600, 0.7)))
    found = column(then, now)
    assert sum(cell.psi for cell in found.moved) == pytest.approx(found.psi, rel=0.1)


@pytest.mark.parametrize("kind", ["numbers", "categories", "many rare categories"])
def test_the_rows_in_the_cells_that_grew_are_as_many_as_the_cells_say(kind: str) -> None:
    rng = np.random.default_rng(3)
    if kind == "numbers":
        then, now = pd.Series(rng.normal(size=2000)), pd.Series(np.append(rng.normal(1, 1, 900), [np.nan] * 100))
    else:
        names = [*"abcd"] if kind == "categories" else [f"c{at}" for at in range(100)]
        then = pd.Series(rng.choice(names, 2000), dtype=object)
        now = pd.Series(rng.choice([*names[:2], "new", "newer"], 1000), dtype=object).where(rng.random(1000) > 0.1)
    profile = ReferenceProfile.build(
        then.to_frame("x"), window="then", model_version="1", max_categories=50, sample_rows=100, seed=0
    )
    tally = count(profile, now.to_frame("x"), sample_rows=100, seed=0)
    found = compare(profile, tally, "now", DriftSettings()).columns[0]
    sides = profile.columns["x"], profile.columns["x"].counted, tally.columns["x"].counted
    inside = lie_in(found.moved, now, *sides, bins=10)
    grown = sum(cell.now for cell in found.moved if cell.now > cell.before)
    values = now.notna().sum() if kind == "numbers" else len(now)
    assert inside.sum() / values == pytest.approx(grown, abs=1e-9)
    assert 0 < inside.mean() < 1
