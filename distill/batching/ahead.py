"""Work done ahead of who waits for it, in a thread."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")


def made_ahead(make: Callable[[Given], Made], given: Iterable[Given], depth: int = 2) -> Generator[Made, None, None]:
    """Yield make(x) for each x in order, with at most `depth` made in advance by one thread.

    What `make` raises is raised here, in its turn. Close the iterator (contextlib.closing) when leaving it early:
    its thread ends with it.
    """
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        try:
            for one in given:
                waiting.append(thread.submit(make, one))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
