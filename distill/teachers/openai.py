"""The teacher behind any endpoint that speaks OpenAI's protocol: text goes there, and answers come back, nothing else.

    answer    POST /v1/chat/completions    one user turn, with the endpoint's own template
              POST /v1/completions         the text as it is
    models    GET /v1/models               once, to see that the name is known there

Answers become tokens by the student's tokenizer. How likely they were is not known, so that a student learns them by
cross entropy alone. Weights cannot be seen: who changes them behind the same name says so in `revision`.
"""

import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, Literal, TypeAlias

import anyio
import numpy as np
from numpy.typing import NDArray

from distill.errors import Failure, InputError
from distill.generation import Sampling
from distill.prompts import fingerprint
from distill.store.encodings import ANSWER
from distill.teachers import openai_replies
from distill.teachers.asking import as_they_come
from distill.teachers.openai_replies import Said
from distill.teachers.protocol import FILTERED, AnswerSignal
from distill.teachers.servers import Refused, Servers, Spent, is_address
from distill.teachers.spoken import Spoken

_Prompt: TypeAlias = NDArray[np.int32]
# Samples are of all tokens, where a server would else take the top_p that the model recommends; TGI refuses a 1.
_TOP_P = 0.999999
_PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}


class OpenAITeacher:
    """Answers through endpoints that all serve `served_model`.

    urls: their addresses without /v1, or a function that is called for them. spoken: the student's tokenizer, and the
    texts of the prompts that will be asked. revision: what the user calls the weights. The limits are those of
    SGLangTeacher; a server that says how long it wants to be left alone is.

    Raises InputError for no name, for addresses that cannot be, and for a tokenizer without an eos token.
    """

    def __init__(
        self,
        served_model: str,
        urls: Sequence[str] | Callable[[], Sequence[str]],
        *,
        spoken: Spoken,
        max_new_tokens: int,
        revision: str = "",
        endpoint: Literal["chat", "completions"] = "chat",
        limit_name: str = "max_tokens",
        drawn: Sampling | None = None,
        api_key: str = "",
        concurrency: int = 64,
        request_seconds: float = 300.0,
        outage_seconds: float = 300.0,
        job_seconds: float = float("inf"),
    ) -> None:
        _check(served_model, urls)
        self.served_model, self.revision, self.urls, self.spoken = served_model, revision, urls, spoken
        self.endpoint: Literal["chat", "completions"] = endpoint
        self.limit_name, self.max_new_tokens, self.drawn = limit_name, max_new_tokens, drawn
        self.concurrency, self.job_seconds = concurrency, job_seconds
        self._limits: dict[str, Any] = {
            "api_key": api_key,
            "connections": concurrency,
            "request_seconds": request_seconds,
            "outage_seconds": outage_seconds,
        }
        self.spent = Spent()
        self.check(spoken.tokenizer, 0)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the name, its revision, and the tokenizer that its answers are written in."""
        asked = ["openai", self.served_model, self.revision, fingerprint(self.spoken.tokenizer)]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    @property
    def format(self) -> str:
        """Answers alone."""
        return ANSWER

    @property
    def sampling(self) -> str:
        """Greedy, or temperature and seed of a draw by the endpoint; and what is put around the prompt."""
        how = f"drawn:temperature={self.drawn.temperature}:seed={self.drawn.seed}" if self.drawn else "greedy"
        return f"openai:{self.endpoint}:{how}:max_new_tokens={self.max_new_tokens}"

    def asked_with(self, tokenizer: Any) -> Any:
        """Return the student's tokenizer, whatever its own is: it is asked, and answers, in text."""
        return tokenizer

    def check(self, tokenizer: Any, top_k: int) -> None:
        """Raise InputError for a tokenizer without an eos token: no answer in it could end. There is no k."""
        if tokenizer.eos_token_id is None:
            raise InputError(
                f"the tokenizer of {tokenizer.name_or_path!r} has no eos token, so that no answer could end: give it "
                "one, and export it again"
            )

    def ask(
        self, prompts: Sequence[_Prompt], progress: Callable[[int, int], None] | None = None
    ) -> Iterator[tuple[int, AnswerSignal]]:
        """Yield (number of the prompt, its answer) as they come.

        Raises InputError for a name that the endpoint does not know and for what it refuses; Failure for a reply that
        is none, for another model in between, and when servers stay away or a limit of time is over. What was yielded
        before stays right.
        """
        texts = [self.spoken.text(prompt) for prompt in prompts]

        async def begin(servers: Servers, ends: float) -> Callable[[str], Awaitable[AnswerSignal]]:
            self.spent, job = servers.spent, _Job(self, servers, ends)
            await job.meet()
            return job.answer

        yield from as_they_come(
            self.urls, texts, begin, limits=self._limits, job_seconds=self.job_seconds, progress=progress
        )


class _Job:
    """The asking of one list of prompts."""

    def __init__(self, teacher: OpenAITeacher, servers: Servers, ends: float) -> None:
        self.teacher, self.servers, self.ends = teacher, servers, ends
        self.model = ""  # that the endpoint says has answered

    async def meet(self) -> None:
        """Raise InputError unless an endpoint is there that knows the model; those that list none are believed."""
        try:
            listed = await self.servers.each("/v1/models")
        except Refused:
            return
        for server, told in listed:
            entries = told.get("data") if isinstance(told, dict) else None
            names = [str(entry.get("id")) for entry in entries or [] if isinstance(entry, dict)]
            if names and self.teacher.served_model not in names:
                raise InputError(
                    f"teacher.served_model {self.teacher.served_model!r} is none of what {server.url} serves: "
                    f"{', '.join(names[:10])}"
                )

    async def answer(self, text: str) -> AnswerSignal:
        """Return the teacher's answer to a text."""
        with anyio.move_on_after(self.ends - time.monotonic()):
            try:
                server, reply = await self.servers.post(_PATHS[self.teacher.endpoint], self._body(text))
            except Refused as refused:
                if not openai_replies.filtered(refused.said):
                    raise
                self.servers.spent.unbilled += 1
                found = Said("", FILTERED, "", None, None)
            else:
                try:
                    found = openai_replies.said(reply, self.teacher.endpoint)
                    self._same_model(found.model)
                    self._within_limit(found.answer_tokens)
                except Failure as error:
                    raise Failure(f"{server.url}: {error}; nothing of this reply is stored") from error
                self._bill(found)
            return openai_replies.signal(found, self.teacher.spoken.tokenizer, self.teacher.max_new_tokens)
        raise Failure(
            f"teacher.job_seconds = {self.teacher.job_seconds:g} are over; what was answered before is stored: ask "
            "again for the rest"
        )

    def _body(self, text: str) -> dict[str, Any]:
        teacher, drawn = self.teacher, self.teacher.drawn
        said = {"messages": [{"role": "user", "content": text}]} if teacher.endpoint == "chat" else {"prompt": text}
        return {
            "model": teacher.served_model,
            **said,
            teacher.limit_name: teacher.max_new_tokens,
            "temperature": drawn.temperature if drawn else 0.0,
            # The likeliest token is the same whatever top_p is.
            **({"top_p": _TOP_P, "seed": drawn.seed} if drawn else {}),
        }

    def _within_limit(self, tokens: int | None) -> None:
        """The endpoint counts by its own tokenizer, in which the limit is as well."""
        if tokens is not None and tokens > self.teacher.max_new_tokens:
            raise Failure(
                f"expected at most {self.teacher.max_new_tokens} tokens, got {tokens}: the endpoint does not know "
                f"{self.teacher.limit_name}; set teacher.limit_name to what it calls the longest answer"
            )

    def _same_model(self, model: str) -> None:
        self.model = self.model or model
        if model != self.model:
            raise Failure(
                f"expected an answer of {self.model!r} as before, got one of {model!r}: a name stands for one model "
                "while it is asked; name the one that is meant in teacher.served_model"
            )

    def _bill(self, found: Said) -> None:
        if found.prompt_tokens is None or found.answer_tokens is None:
            self.servers.spent.unbilled += 1
            return
        self.servers.spent.billed_prompt_tokens += found.prompt_tokens
        self.servers.spent.billed_answer_tokens += found.answer_tokens


def _check(served_model: str, urls: Sequence[str] | Callable[[], Sequence[str]]) -> None:
    if not served_model:
        raise InputError("teacher.served_model is empty: name the model as the endpoint does")
    if callable(urls):
        return
    if not urls:
        raise InputError("teacher.urls is empty: name the endpoint, as in https://api.example.com")
    for url in urls:
        if not is_address(url):
            raise InputError(f"teacher.urls: {url!r} is no http:// or https:// address")
        if url.rstrip("/").endswith("/v1"):
            raise InputError(f"teacher.urls: {url!r} ends in /v1, which is added here: leave it out")
