"""What is made ahead of its use."""

import threading
from contextlib import closing

import pytest

from distill.batching.ahead import made_ahead


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_all_come_in_order() -> None:
    assert list(made_ahead(lambda n: n * n, range(10))) == [n * n for n in range(10)]
    assert list(made_ahead(lambda n: n, [])) == []


def test_the_next_are_made_while_one_is_used_and_no_more_than_that() -> None:
    made: list[int] = []
    third = threading.Event()

    def make(n: int) -> int:
        made.append(n)
        if n == 2:
            third.set()
        return n

    with closing(made_ahead(make, range(100), depth=2)) as ahead:
        assert next(ahead) == 0
        assert third.wait(60)
        assert made == [0, 1, 2]


def test_an_error_comes_in_its_turn_and_ends_the_thread() -> None:
    def make(n: int) -> float:
        return 1 / (2 - n)

    ahead = made_ahead(make, range(5))
    assert [next(ahead), next(ahead)] == [0.5, 1.0]
    with pytest.raises(ZeroDivisionError):
        next(ahead)
    assert not threads()


def test_its_thread_ends_with_the_loop() -> None:
    with closing(made_ahead(lambda n: n, range(100))) as ahead:
        next(ahead)
        assert threads()
    assert not threads()
