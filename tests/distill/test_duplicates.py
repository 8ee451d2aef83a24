"""Equal and nearly equal prompts are found, others are not, and quickly."""

import time

import numpy as np
import pytest
from numpy.typing import NDArray

from distill.mixing.duplicates import SHINGLE, near, same

Prompt = NDArray[np.int32]


def prompts(*rows: list[int]) -> list[Prompt]:
    return [np.array(row, np.int32) for row in rows]


def random_prompts(count: int, seed: int, length: int = 60) -> list[Prompt]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 30_000, rng.integers(length // 2, length)).astype(np.int32) for _ in range(count)]


def changed(prompt: Prompt, at: int) -> Prompt:
    other = prompt.copy()
    other[at] += 1
    return other


def one_group(rows: list[Prompt]) -> NDArray[np.int64]:
    return np.zeros(len(rows), np.int64)


def jaccard(one: Prompt, other: Prompt) -> float:
    a, b = ({tuple(p[at : at + SHINGLE]) for at in range(len(p) - SHINGLE + 1)} for p in (one, other))
    return len(a & b) / len(a | b)


def test_the_first_of_equal_prompts_is_named() -> None:
    assert same(prompts([1, 2], [3], [1, 2], [1, 2, 3], [3])).tolist() == [0, 1, 0, 3, 1]
    assert same([]).tolist() == []


def test_a_changed_token_in_a_long_prompt_is_near_and_in_a_short_one_is_not() -> None:
    long, short = random_prompts(1, 0, 400)[0], random_prompts(1, 1, 20)[0]
    rows = [long, changed(long, 50), short, changed(short, 5), *random_prompts(50, 2)]
    assert jaccard(rows[0], rows[1]) > 0.9 > jaccard(rows[2], rows[3])
    assert near(rows, one_group(rows), 0.9).tolist() == [0, 0, *range(2, 54)]


def test_all_that_are_near_by_exact_jaccard_are_found_and_no_others() -> None:
    base = random_prompts(400, 3, 100)
    rng = np.random.default_rng(4)
    other = [changed(row, int(rng.integers(1, len(row) - 1))) for row in base]
    rows = [*base, *other]
    expected = np.array([jaccard(one, two) >= 0.9 for one, two in zip(base, other, strict=True)])
    assert 0.2 < expected.mean() < 0.9
    found = near(rows, one_group(rows), 0.9)[400:] != np.arange(400, 800)
    assert not (found & ~expected).any()
    assert (found & expected).sum() >= 0.99 * expected.sum(), "buckets miss one in a thousand"


def test_rows_of_different_groups_are_never_near() -> None:
    long = random_prompts(1, 0, 400)[0]
    rows = [long, changed(long, 50), changed(long, 60), *random_prompts(5, 1)]
    assert near(rows, np.array([0, 1, 0, 0, 0, 0, 0, 0]), 0.9).tolist() == [0, 1, 0, 3, 4, 5, 6, 7]


def test_a_chat_template_around_short_prompts_makes_them_no_duplicates() -> None:
    head, tail = np.arange(1000, 1200, dtype=np.int32), np.arange(2000, 2100, dtype=np.int32)
    rows = [np.concatenate([head, text, tail]) for text in random_prompts(20, 5, 10)]
    assert near(rows, one_group(rows), 0.5).tolist() == list(range(20))


def test_every_row_is_stood_for_by_one_that_stands_for_itself() -> None:
    base = random_prompts(20, 6, 200)
    rows = [changed(row, at) for at in range(5, 60, 5) for row in base]
    stands = near(rows, one_group(rows), 0.85)
    assert (stands[stands] == stands).all()
    assert (stands <= np.arange(len(rows))).all()
    assert len(set(stands.tolist())) < len(rows) / 2


@pytest.mark.parametrize("rows", [[], prompts([1]), prompts([1], [2]), prompts([1, 2], [1, 2, 3])])
def test_few_and_tiny_prompts_are_taken(rows: list[Prompt]) -> None:
    assert near(rows, one_group(rows), 0.9).tolist() == list(range(len(rows)))


def test_time_grows_with_the_rows_even_where_all_are_alike() -> None:
    """5,000 nearly equal prompts: all pairs of them would be 12 million."""
    base = random_prompts(1, 7, 200)[0]
    rows = [changed(base, at % len(base)) for at in range(5_000)]
    started = time.process_time()
    stands = near([*rows, *random_prompts(5, 8)], one_group([*rows, *rows[:5]]), 0.7)
    assert time.process_time() - started < 20
    assert len(set(stands.tolist())) < 0.1 * len(rows)
