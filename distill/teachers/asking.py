"""Rows that are asked of servers, many at once: answers come to a plain loop as they are there, long rows first."""

import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence, Sized
from contextlib import asynccontextmanager
from typing import Any, TypeAlias, TypeVar

import anyio
from anyio.from_thread import start_blocking_portal
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from distill.teachers.servers import Servers

Row = TypeVar("Row", bound=Sized)
Signal = TypeVar("Signal")
Ask: TypeAlias = Callable[[Row], Awaitable[Signal]]
# Servers, and when all is to be over [s of the monotonic clock] -> what asks for one row; checks first who is there.
Begin: TypeAlias = Callable[[Servers, float], Awaitable[Ask[Row, Signal]]]


def as_they_come(
    urls: Sequence[str] | Callable[[], Sequence[str]],
    rows: Sequence[Row],
    begin: Begin[Row, Signal],
    *,
    limits: dict[str, Any],
    job_seconds: float,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[int, Signal]]:
    """Yield (number of the row, what was answered), each row once; who stops reading stops the asking.

    limits: of Servers, of which `connections` requests are under way at most. Raises what `begin` and asking raise;
    after the first error no more rows are asked, and it is raised when those under way have ended: they are paid.
    """
    addresses = list(dict.fromkeys(urls() if callable(urls) else urls))
    with start_blocking_portal() as portal:
        asking = portal.wrap_async_context_manager(_answered(addresses, rows, begin, limits, job_seconds))
        answered = asking.__enter__()
        failed: Exception | None = None
        done = 0
        try:
            while (found := portal.call(_next, answered)) is not None:
                if isinstance(found, Exception):
                    failed = failed or found
                    continue
                yield found
                done += 1
                if progress:
                    progress(done, len(rows))
            if failed:
                raise failed
        finally:  # whatever ended it is not told to the asking, whose tasks would wrap it in a group
            asking.__exit__(None, None, None)


async def _next(answered: "MemoryObjectReceiveStream[tuple[int, Signal] | Exception]") -> Any:
    """Return what comes next, None after the last."""
    try:
        return await answered.receive()
    except anyio.EndOfStream:
        return None


@asynccontextmanager
async def _answered(
    urls: Sequence[str],
    rows: Sequence[Row],
    begin: Begin[Row, Signal],
    limits: dict[str, Any],
    job_seconds: float,
) -> AsyncIterator[MemoryObjectReceiveStream[tuple[int, Signal] | Exception]]:
    together = int(limits["connections"])
    send, receive = anyio.create_memory_object_stream[tuple[int, Signal] | Exception](max_buffer_size=together)
    left = iter(sorted(range(len(rows)), key=lambda row: -len(rows[row])))
    ends = time.monotonic() + job_seconds
    async with Servers(urls, **limits) as servers, anyio.create_task_group() as group, receive:
        try:
            ask = await begin(servers, ends)
        except Exception as error:  # told to who reads, whatever it is: the tasks would wrap it in a group
            await send.send(error)
        else:
            for _ in range(min(together, len(rows))):
                group.start_soon(_work, ask, rows, left, send.clone())
        send.close()  # the stream ends with the last of its copies
        yield receive
        group.cancel_scope.cancel()


async def _work(
    ask: Ask[Row, Signal],
    rows: Sequence[Row],
    left: Iterator[int],
    send: MemoryObjectSendStream[tuple[int, Signal] | Exception],
) -> None:
    with send:
        for row in left:
            try:
                found: tuple[int, Signal] | Exception = row, await ask(rows[row])
            except Exception as error:  # told to who reads, whatever it is
                found = error
                deque(left, 0)  # nobody gets another row
            await send.send(found)
