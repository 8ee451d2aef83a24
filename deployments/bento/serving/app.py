"""The service's addresses: POST /generate and POST /stream, and what becomes of a request on its way to an answer."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from .batches import Decoder, Overloaded, Row
from .counters import Counters
from .limits import Asked, Limits, Refusal, check_key, check_type, parse, read, request_model
from .text import Text


class Answer(BaseModel):
    """What the student says to one prompt."""

    response: str
    mean_logprob: float  # over the answer's tokens, stop token included [nats/token]
    model_version: str


class Fault(BaseModel):
    """Why a request was not answered; nothing that was sent is quoted."""

    error: str
    detail: list[dict[str, Any]] = []  # of each fault in the body: loc, msg, type


@dataclass
class Desk:
    """Takes requests in and hands answers out; a worker sets all of this once its model answers."""

    text: Text
    decoder: Decoder
    counters: Counters
    key: str  # empty: none is asked for
    model_version: str
    limits: Limits
    model: type[Asked]

    async def generate(self, request: Request) -> Response:
        """Answer with all answers at once."""
        began = time.monotonic()
        try:
            work = await self._admitted(request, began, every_token=False)
            async with work.leaving():
                await work.wait_for_all(request)
            response: Response = JSONResponse([self._answer(row) for row in work.rows])
            outcome = "answered"
        except Refusal as refusal:
            response, outcome = refused(refusal), _OUTCOMES.get(refusal.status, "refused")
        self.counters.request("/generate", outcome, time.monotonic() - began)
        return response

    async def stream(self, request: Request) -> Response:
        """Answer with server-sent events: pieces of text as they come, then each whole answer."""
        began = time.monotonic()
        try:
            work = await self._admitted(request, began, every_token=True)
        except Refusal as refusal:
            outcome = _OUTCOMES.get(refusal.status, "refused")
            self.counters.request("/stream", outcome, time.monotonic() - began)
            return refused(refusal)
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(self._events(work, began), media_type="text/event-stream", headers=headers)

    async def _events(self, work: "_Work", began: float) -> AsyncIterator[str]:
        told, outcome = [""] * len(work.rows), "gone"
        try:
            async with work.leaving():
                async for at, row, finished in work.news():
                    if piece := _new_text(self.text.decode(list(row.answer)), told[at], finished):
                        told[at] += piece
                        yield _event("text", {"index": at, "text": piece})
                    if finished:
                        yield _event("answer", {"index": at, **self._answer(row)})
                outcome = "answered"
        except Refusal as refusal:
            outcome = _OUTCOMES.get(refusal.status, "refused")
            yield _event("error", {"status": refusal.status, "error": refusal.reason})
        finally:
            self.counters.request("/stream", outcome, time.monotonic() - began)

    async def _admitted(self, request: Request, began: float, *, every_token: bool) -> "_Work":
        """Return a request's rows, which wait for their turn; raises Refusal and leaves none behind."""
        check_key(request.headers.get("authorization"), self.key)
        check_type(request.headers.get("content-type"))
        most = self.limits.max_latency_ms / 1000
        try:
            async with asyncio.timeout(most):
                body = await read(request.stream(), self.limits.max_body_bytes)
        except TimeoutError:
            raise Refusal(408, f"the body did not come within {most:g} s", connection="close") from None
        except ClientDisconnect:
            raise Refusal(499, "the client went away") from None
        asked = parse(body, self.model)
        prompts = await asyncio.to_thread(self.text.encode, asked.prompts)
        work = _Work(prompts, asked.max_new_tokens, began + asked.deadline_ms / 1000, every_token)
        try:
            self.decoder.submit(work.rows)
        except Overloaded as error:
            raise Refusal(503, f"{error}: ask again later", retry_after="1") from None
        self.counters.tokens("in", sum(map(len, prompts)))
        return work

    def _answer(self, row: Row) -> dict[str, Any]:
        if row.failed:
            raise Refusal(500, "the model failed on this request; the server's log says why")
        self.counters.tokens("out", len(row.answer))
        response, mean = self.text.decode(row.answer), sum(row.logprobs) / len(row.logprobs)
        return {"response": response, "mean_logprob": mean, "model_version": self.model_version}


_OUTCOMES = {401: "unauthorized", 499: "gone", 500: "failed", 503: "overloaded", 504: "late"}


class _Work:
    """The rows of one request, as its coroutine sees them."""

    def __init__(self, prompts: list[list[int]], limit: int, deadline: float, every_token: bool) -> None:
        loop = asyncio.get_running_loop()
        self._grown, self.deadline = asyncio.Queue[tuple[Row, bool]](), deadline

        def told(row: Row) -> None:
            # Whether it has ended is asked here, by the thread that ends it: later it may have, with tokens to come.
            if row.finished or every_token:
                loop.call_soon_threadsafe(self._grown.put_nowait, (row, row.finished))

        self.rows = [Row(prompt, limit, told) for prompt in prompts]

    async def news(self) -> AsyncIterator[tuple[int, Row, bool]]:
        """Yield (number, row, whether that was its last time) of those that have grown, until all are finished.

        Raises Refusal past the deadline.
        """
        left = {row: at for at, row in enumerate(self.rows)}
        while left:
            try:
                async with asyncio.timeout(self.deadline - time.monotonic()):
                    row, finished = await self._grown.get()
            except TimeoutError:
                raise Refusal(504, "not answered by the deadline of the request (deadline_ms)") from None
            yield left.pop(row) if finished else left[row], row, finished

    async def wait_for_all(self, request: Request) -> None:
        """Return when all rows are finished; raises Refusal past the deadline, and when the client goes away."""
        finished, gone = asyncio.create_task(self._all()), asyncio.create_task(_disconnected(request))
        try:
            await asyncio.wait({finished, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not finished.done():
                raise Refusal(499, "the client went away")
            await finished
        finally:
            finished.cancel()
            gone.cancel()

    async def _all(self) -> None:
        async for _ in self.news():
            pass

    @contextlib.asynccontextmanager
    async def leaving(self) -> AsyncIterator[None]:
        """Free the places of rows that nobody waits for any more, however the block ends."""
        try:
            yield
        finally:
            for row in self.rows:
                row.given_up = True


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _new_text(text: str, told: str, finished: bool) -> str:
    """Return what is new of a text; a character of which bytes lack (U+FFFD) is held back until it is whole."""
    whole = text if finished else text.rstrip("�")
    return whole[len(told) :] if whole.startswith(told) else ""


def _event(name: str, data: Mapping[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def refused(refusal: Refusal) -> Response:
    """Return the answer to a request that is not answered."""
    content = {"error": refusal.reason, "detail": refusal.detail}
    return JSONResponse(content, status_code=refusal.status, headers=refusal.headers)


# --- the application -------------------------------------------------------------------------------------------

Handler = Callable[[Request], Awaitable[Response]]

REFUSALS = {
    400: "the body is no request, or asks for more than the limits allow",
    401: "the key is missing or wrong; it is asked for where the Bento was built with packaging.api_key_env",
    408: "the body did not come in time",
    413: "the body is too long",
    415: "the body is not JSON",
    503: "too many prompts wait",
    504: "not answered by the request's deadline",
}


def application(limits: Limits) -> tuple[FastAPI, Callable[[Desk], None]]:
    """Return the ASGI application, and a call that opens it for requests to a desk."""
    app = FastAPI(title="student", docs_url=None, redoc_url=None)
    opened: list[Desk] = []
    model = request_model(limits)
    options: dict[str, Any] = {
        "responses": {status: {"model": Fault, "description": why} for status, why in REFUSALS.items()},
        "openapi_extra": {
            "requestBody": {"required": True, "content": {"application/json": {"schema": model.model_json_schema()}}},
        },
    }

    @app.post("/generate", response_model=list[Answer], **options)
    async def generate(request: Request) -> Response:
        """Answer prompts greedily, each with the mean log-probability of its answer, in their order."""
        return await opened[0].generate(request)

    @app.post("/stream", response_class=StreamingResponse, **options)
    async def stream(request: Request) -> Response:
        """Answer as server-sent events: `text` as it comes, an `answer` a prompt as of /generate, or an `error`."""
        return await opened[0].stream(request)

    return app, opened.append
