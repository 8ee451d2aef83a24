"""What carries a drift: the cells are named, and their terms make up the PSI."""

import numpy as np
import pandas as pd
import pytest

from monitoring.drift import ColumnDrift, compare
from monitoring.profile import ReferenceProfile
from monitoring.settings import DriftSettings


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
