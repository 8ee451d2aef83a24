"""A reservoir for each segment: of the right size, uniform, and steady while windows come in."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.mixing.replay import quotas, random_order, reservoir


def test_quotas_are_as_the_traffic_or_even_or_between() -> None:
    sizes = np.array([900, 90, 10])
    assert quotas(sizes, 100, 0.0).tolist() == [90, 9, 1]
    assert quotas(sizes, 30, 1.0).tolist() == [10, 10, 10]
    assert quotas(sizes, 100, 1.0).tolist() == [45, 45, 10], "what the smallest cannot give the others do"
    proportional, between, even = (quotas(sizes, 100, evenness)[2] for evenness in (0.0, 0.5, 1.0))
    assert proportional < between <= even


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    count=st.integers(0, 200),
    evenness=st.sampled_from([0.0, 0.3, 1.0]),
)
@settings(deadline=None)
def test_quotas_add_up_and_no_segment_gives_more_than_it_has(sizes: list[int], count: int, evenness: float) -> None:
    found = quotas(np.array(sizes), count, evenness)
    assert found.sum() == min(count, sum(sizes))
    assert (found >= 0).all()
    assert (found <= np.array(sizes)).all()


def test_the_order_is_a_pure_function_of_seed_and_name() -> None:
    names = [f"row {number}" for number in range(1000)]
    order = random_order(names, 3)
    assert (order == random_order(names, 3)).all()
    assert (order[::-1] == random_order(names[::-1], 3)).all()
    assert (order != random_order(names, 4)).all()
    assert len(random_order([], 0)) == 0


def test_a_row_of_a_segment_is_drawn_as_often_as_any_other() -> None:
    names, segments = [f"row {number}" for number in range(60)], np.repeat([0, 1], [50, 10])
    times = np.zeros(60)
    for seed in range(500):
        times[reservoir(segments, random_order(names, seed), 20, 1.0)] += 1
    assert times[:50] == pytest.approx(100, abs=50)  # 10 of 50: 5 standard deviations
    assert (times[50:] == 500).all(), "10 of 10"


def test_when_a_window_comes_in_most_of_the_reservoir_stays() -> None:
    names = [f"row {number}" for number in range(3000)]
    segments, order = np.arange(3000) % 3, random_order(names, 0)
    before = set(reservoir(segments[:2000], order[:2000], 600, 0.5).tolist())
    after = set(reservoir(segments, order, 600, 0.5).tolist())
    assert len(before) == len(after) == 600
    assert len(before & after) == pytest.approx(400, abs=40), "as many as rows of the earlier windows belong there"


def test_nothing_to_draw_from_is_nothing() -> None:
    empty = np.zeros(0, np.int64)
    assert reservoir(empty, random_order([], 0), 10, 0.5).tolist() == []
