"""Many rows asked at once: what one that fails does to the others, and that an interrupt waits for none."""

import os
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import pytest

from distill.errors import Failure
from distill.teachers.asking import as_they_come
from distill.teachers.servers import Servers

LIMITS: dict[str, Any] = {"api_key": "", "request_seconds": 60.0, "outage_seconds": 60.0}


def asked(ask: Callable[[int], Awaitable[str]], rows: int, together: int) -> Any:
    """Return what comes of asking for rows of lengths `rows`, ..., 1, of which `ask` is told the length."""

    async def begin(_: Servers, __: float) -> Callable[[str], Awaitable[str]]:
        return lambda row: ask(len(row))

    lengths = ["x" * length for length in range(rows, 0, -1)]
    limits = {**LIMITS, "connections": together}
    return as_they_come(["http://127.0.0.1:1"], lengths, begin, limits=limits, job_seconds=60.0)


def test_after_an_error_what_is_under_way_is_waited_for_and_nothing_else_is_asked() -> None:
    seen: list[int] = []

    async def ask(length: int) -> str:
        seen.append(length)
        while len(seen) < 4:
            await anyio.sleep(0.01)  # until all four are under way
        if length == 10:
            raise Failure("too long")
        await anyio.sleep(0.05)
        if length == 8:
            raise Failure("another one")
        return "answer"

    found: list[tuple[int, str]] = []
    with pytest.raises(Failure, match="too long"):
        found.extend(asked(ask, 10, 4))  # which keeps what came before the error
    assert seen == [10, 9, 8, 7]
    assert sorted(found) == [(1, "answer"), (3, "answer")]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Python's own handler of SIGINT, which a process that was started in the background ignores."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.timeout(60)
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("after_an_error", [True, False])
def test_an_interrupt_waits_for_nothing_that_is_under_way(after_an_error: bool) -> None:
    waits = threading.Event()

    async def ask(length: int) -> str:
        if length == 2 and after_an_error:
            while not waits.is_set():
                await anyio.sleep(0.01)
            raise Failure("too long")
        if length == 1:
            waits.set()
        await anyio.sleep_forever()
        raise AssertionError

    def interrupt() -> None:
        waits.wait(60)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        list(asked(ask, 2, 2))
    thread.join()


def test_what_begins_the_asking_and_fails_is_raised() -> None:
    async def begin(_: Servers, __: float) -> Any:
        raise Failure("nobody is there")

    with pytest.raises(Failure, match="nobody is there"):
        list(as_they_come(["http://127.0.0.1:1"], ["x"], begin, limits={**LIMITS, "connections": 1}, job_seconds=60.0))
