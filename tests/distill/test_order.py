"""Which rows a step takes."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.batching.order import Order, even_cuts
from distill.errors import InputError

LENGTHS = np.random.default_rng(0).integers(1, 50, 300)
ROWS = st.lists(st.integers(1, 80), min_size=1, max_size=120).map(np.array)


def taken(order: Order, first: int, last: int) -> list[int]:
    return [row for step in range(first, last) for row in order.rows(step)]


@given(lengths=ROWS, tokens=st.integers(1, 400), seed=st.integers(0, 2**31))
def test_every_row_comes_once_in_each_pass(lengths: np.ndarray, tokens: int, seed: int) -> None:
    order = Order(lengths, tokens, seed)
    ends = [0, order.steps(1), order.steps(2), order.steps(3)]
    for first, last in pairwise(ends):
        assert sorted(taken(order, first, last)) == list(range(len(lengths)))


@given(lengths=ROWS, tokens=st.integers(1, 400), steps=st.integers(0, 60))
def test_the_rows_reached_are_those_of_the_steps_done(lengths: np.ndarray, tokens: int, steps: int) -> None:
    left_out = np.arange(len(lengths)) % 3 == 1
    order = Order(lengths, tokens, 0, left_out)
    assert np.flatnonzero(order.reached(steps)).tolist() == sorted(set(taken(order, 0, steps)))


@given(lengths=ROWS, tokens=st.integers(1, 400))
def test_no_step_has_more_tokens_than_allowed_but_for_a_longer_row_alone(lengths: np.ndarray, tokens: int) -> None:
    order = Order(lengths, tokens, 0)
    steps = [order.rows(step) for step in range(order.steps(1))]
    assert all(lengths[rows].sum() <= tokens or len(rows) == 1 for rows in steps)
    assert sum(lengths[rows].sum() > tokens for rows in steps) == order.longer == (lengths > tokens).sum()


@given(lengths=ROWS, tokens=st.integers(1, 400))
def test_cuts_are_as_few_as_can_be_and_even(lengths: np.ndarray, tokens: int) -> None:
    cuts = even_cuts(lengths, tokens)
    assert cuts == sorted(set(cuts))
    parts = [part.sum() for part in np.split(lengths, cuts)]
    greedy, room = 1, tokens
    for length in lengths:
        greedy, room = (greedy, room - length) if length <= room or room == tokens else (greedy + 1, tokens - length)
    assert len(parts) <= greedy
    assert max(parts) <= max(tokens, lengths.max())


def test_the_order_is_a_pure_function_of_seed_and_step() -> None:
    straight = [Order(LENGTHS, 200, 3).rows(step) for step in range(90)]
    resumed = Order(LENGTHS, 200, 3)
    assert [resumed.rows(step) for step in range(57, 90)] == straight[57:]
    assert Order(LENGTHS, 200, 4).rows(57) != straight[57]
    assert taken(resumed, 0, 5) != taken(resumed, resumed.steps(1), resumed.steps(1) + 5)


def test_rows_of_a_step_are_of_about_the_same_length_and_fill_it() -> None:
    order = Order(LENGTHS, 400, 0)
    steps = [LENGTHS[order.rows(step)] for step in range(order.steps(1))]
    assert np.mean([np.ptp(lengths) for lengths in steps]) < 0.5 * np.ptp(LENGTHS)
    assert np.mean([lengths.sum() for lengths in steps]) > 0.9 * 400


def test_steps_make_the_epochs() -> None:
    order = Order(np.full(100, 10), 100, 0)
    assert order.steps(1) in (10, 11, 12)
    assert order.steps(2.5) == order.steps(2) + np.ceil((order.steps(3) - order.steps(2)) / 2)
    assert Order(LENGTHS, 10**6, 0).steps(0.1) == 1


def test_no_row_at_all_is_an_error() -> None:
    with pytest.raises(InputError, match="no row to learn from"):
        Order(np.zeros(0, np.int64), 10, 0)
