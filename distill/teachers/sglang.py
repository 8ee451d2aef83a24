"""The teacher on SGLang servers: token ids go there, answers come back with the top-k or the states of their tokens.

    answer     POST /generate       token ids -> the answer's token ids, the top-k of each as flat base64
    states     POST /generate       prompt and answer together -> the final states of all their tokens
    weights    GET /model_info      path and version, asked again after every answer

An answer counts once its server has said, after it, that its weights are still the same ones. Text never goes over the
wire, so no tokenizer of a server's takes part.
"""

import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import anyio
import numpy as np
from anyio.from_thread import start_blocking_portal
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from numpy.typing import NDArray

from distill.checkpoint import digest
from distill.errors import Failure, InputError
from distill.generation import stop_tokens
from distill.prompts import vocabulary_size
from distill.teachers.of_checkpoint import OfCheckpoint
from distill.teachers.protocol import AnySignal, HiddenSignal
from distill.teachers.servers import Server, Servers, Spent
from distill.teachers.sglang_replies import Asked, answer_of, states_of, topk_of

_Answered: TypeAlias = tuple[int, AnySignal] | Exception
_Prompt: TypeAlias = NDArray[np.int32]


class _Weights(NamedTuple):
    """What a server says that it serves."""

    model_path: str
    weight_version: str


class SGLangTeacher(OfCheckpoint):
    """Answers through SGLang servers, or their router, that all serve the checkpoint `model`.

    urls: their addresses, or a function that is called for them when there is something to ask.

    Of the checkpoint itself tokenizer, configuration and digest are read. Drawn answers come from a server's own
    generator, so that another server draws others. At most `concurrency` requests are under way; one may take
    `request_seconds`, all of them together `job_seconds`, and servers may be away for `outage_seconds`.

    Raises InputError for addresses that cannot be.
    """

    def __init__(
        self,
        model: str | Path,
        urls: Sequence[str] | Callable[[], Sequence[str]],
        *,
        api_key: str = "",
        concurrency: int = 64,
        request_seconds: float = 300.0,
        outage_seconds: float = 300.0,
        job_seconds: float = float("inf"),
        **options: Any,
    ) -> None:
        """Options are those of OfCheckpoint."""
        super().__init__(model, **options)
        if not callable(urls):
            _check_addresses(urls)
        self.urls, self.concurrency, self.job_seconds = urls, concurrency, job_seconds
        self._limits: dict[str, Any] = {
            "api_key": api_key,
            "connections": concurrency,
            "request_seconds": request_seconds,
            "outage_seconds": outage_seconds,
        }
        self.spent = Spent()

    @property
    def sampling(self) -> str:
        """Greedy, or temperature and seed of a draw by the servers."""
        return super().sampling.replace("drawn:", "drawn:sglang:")

    def ask(
        self, prompts: Sequence[_Prompt], progress: Callable[[int, int], None] | None = None
    ) -> Iterator[tuple[int, AnySignal]]:
        """Yield (number of the prompt, its signal) as they come, long prompts first.

        Raises InputError for prompts and settings that the servers could not take, before anything is sent, and for
        servers of another model; Failure for a reply that cannot be right, for weights that change meanwhile, and
        when servers stay away or a limit of time is over. What was yielded before stays right.
        """
        self._check(prompts)
        urls = list(dict.fromkeys(self.urls() if callable(self.urls) else self.urls))
        with start_blocking_portal() as portal:
            job = portal.wrap_async_context_manager(self._answered(urls, prompts))
            answered = job.__enter__()
            try:
                for done in range(1, len(prompts) + 1):
                    found = portal.call(answered.receive)
                    if isinstance(found, Exception):
                        raise found
                    yield found
                    if progress:
                        progress(done, len(prompts))
            finally:  # whatever ended it is not told to the job, whose tasks would wrap it in a group
                job.__exit__(None, None, None)

    @cached_property
    def _config(self) -> Any:
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(str(self.folder)).get_text_config()

    @cached_property
    def _stops(self) -> list[int]:
        from transformers import GenerationConfig

        try:
            own = GenerationConfig.from_pretrained(str(self.folder))
        except OSError:  # the checkpoint has none of its own
            own = GenerationConfig.from_model_config(self._config)
        return stop_tokens(own, self.tokenizer)

    @cached_property
    def _vocabulary(self) -> int:
        """Tokens that a text can have; the model's own may be more, which are padding."""
        return min(vocabulary_size(self.tokenizer), int(self._config.vocab_size))

    def _check(self, prompts: Sequence[_Prompt]) -> None:
        """Raise InputError for what would kill a server, or be cut by it."""
        self.check_width(int(self._config.hidden_size))
        if self.top_k > self._vocabulary:
            raise InputError(
                f"teacher.top_k = {self.top_k}, but {self.model!r} has {self._vocabulary} tokens: lower it"
            )
        if empty := sum(not len(prompt) for prompt in prompts):
            raise InputError(f"{empty} of {len(prompts)} prompts have no token: encode them with distill.prompts")
        for prompt in prompts:
            if int(prompt.min()) < 0 or int(prompt.max()) >= self._config.vocab_size:
                raise InputError(
                    f"token ids {int(prompt.min())} to {int(prompt.max())} in a prompt, but {self.model!r} has "
                    f"{self._config.vocab_size} tokens: its tokenizer belongs to another model"
                )
        longest = max((len(prompt) for prompt in prompts), default=0)
        context = getattr(self._config, "max_position_embeddings", None)
        if context is not None:
            self._fits(longest, int(context), f"the context of {self.model!r}")

    def _fits(self, longest: int, context: int, whose: str) -> None:
        if longest + self.max_new_tokens > context:
            raise InputError(
                f"a prompt of {longest} tokens and an answer of {self.max_new_tokens} exceed {whose}, "
                f"{context} tokens: lower student.max_prompt_tokens or student.max_new_tokens"
            )

    @asynccontextmanager
    async def _answered(
        self, urls: Sequence[str], prompts: Sequence[_Prompt]
    ) -> AsyncIterator[MemoryObjectReceiveStream[_Answered]]:
        """Yield a stream of all answers; who stops reading stops the asking."""
        send, receive = anyio.create_memory_object_stream[_Answered](max_buffer_size=self.concurrency)
        left = iter(sorted(range(len(prompts)), key=lambda row: -len(prompts[row])))
        ends = time.monotonic() + self.job_seconds
        async with Servers(urls, **self._limits) as servers, anyio.create_task_group() as group, receive:
            self.spent = servers.spent
            job = self._job(servers, ends)
            try:
                await job.meet(max((len(prompt) for prompt in prompts), default=0))
            except (InputError, Failure) as error:
                await send.send(error)
            else:
                for _ in range(min(self.concurrency, len(prompts))):
                    group.start_soon(self._work, job, prompts, left, send.clone())
            yield receive
            group.cancel_scope.cancel()

    def _job(self, servers: Servers, ends: float) -> "_Job":
        return _Job(self, servers, ends)

    async def _work(
        self, job: "_Job", prompts: Sequence[_Prompt], left: Iterator[int], send: MemoryObjectSendStream[_Answered]
    ) -> None:
        for row in left:
            try:
                found: _Answered = row, await job.signal(prompts[row])
            except Exception as error:  # told to who reads, whatever it is
                found = error
            await send.send(found)


class _Job:
    """The asking of one list of prompts."""

    def __init__(self, teacher: SGLangTeacher, servers: Servers, ends: float) -> None:
        self.teacher, self.servers, self.ends = teacher, servers, ends
        self.weights: _Weights | None = None
        self._confirmed = {server.url: 0.0 for server in servers.servers}
        self._confirming = {server.url: anyio.Lock() for server in servers.servers}

    async def meet(self, longest: int) -> None:
        """Raise InputError unless the servers that are there serve this checkpoint, and one and the same version."""
        own = json.loads((self.teacher.folder / "config.json").read_text("utf-8"))
        for server, info in await self.servers.each("/model_info"):
            weights, kind = _weights(info), (info or {}).get("architectures")
            if kind and own.get("architectures") and kind != own["architectures"]:
                raise InputError(
                    f"{server.url} serves {weights.model_path!r}, a {kind[0]}, but teacher.model "
                    f"{self.teacher.model!r} is a {own['architectures'][0]}: start the server with that checkpoint"
                )
            self._same_files(server, weights)
            self._compare(server, weights)
        for server, info in await self.servers.each("/server_info"):
            if (context := (info or {}).get("max_req_input_len")) is not None:
                self.teacher._fits(longest, int(context), f"what {server.url} takes")

    def _same_files(self, server: Server, weights: _Weights) -> None:
        """Compare digests where the server's checkpoint can be read from here."""
        served = Path(weights.model_path)
        if served.is_dir() and (found := digest(served)) != self.teacher.digest:
            raise InputError(
                f"{server.url} serves {weights.model_path!r} with digest {found[:12]}, but teacher.model "
                f"{self.teacher.model!r} has {self.teacher.digest[:12]}: start the server with that checkpoint"
            )

    def _compare(self, server: Server, weights: _Weights) -> None:
        self.weights = self.weights or weights
        if weights != self.weights:
            raise Failure(
                f"{server.url}: expected the weights {self.weights}, got {weights}: servers of one teacher have the "
                "same ones, and keep them while they are asked; what came after the change is not stored"
            )

    async def signal(self, prompt: _Prompt) -> AnySignal:
        """Return the teacher's answer to a prompt, confirmed by the server that gave it."""
        while True:
            with anyio.move_on_after(self.ends - time.monotonic()):
                asked, signal = await self._answer(prompt)
                if all([await self._confirm(server) for server in asked]):
                    return signal
                continue  # one went away: nobody knows with which weights it answered
            raise Failure(
                f"teacher.job_seconds = {self.teacher.job_seconds:g} are over; what was answered before is stored: "
                "ask again for the rest"
            )

    async def _answer(self, prompt: _Prompt) -> tuple[list[Server], AnySignal]:
        """Return (who was asked, the signal)."""
        teacher, drawn = self.teacher, self.teacher.drawn
        body = {
            "input_ids": prompt.tolist(),
            "sampling_params": {
                "temperature": drawn.temperature if drawn else 0.0,
                **({"sampling_seed": drawn.seed} if drawn else {}),
                "max_new_tokens": teacher.max_new_tokens,
                "stop_token_ids": teacher._stops,
                **_PLAIN,
            },
            "return_logprob": True,
            **({"top_logprobs_num": teacher.top_k, **_FLAT} if teacher.top_k else {}),
        }
        server, reply = await self.servers.post("/generate", body)
        asked = self._asked(len(prompt))
        try:
            answer, logprobs = answer_of(reply, asked)
            if teacher.top_k:
                return [server], topk_of(reply, answer, asked)
        except Failure as error:
            raise _named(server, error) from error
        whole = np.concatenate([prompt, answer])
        body = {
            "input_ids": whole.tolist(),
            "sampling_params": {"temperature": 0.0, "max_new_tokens": 1, **_PLAIN},
            "return_hidden_states": True,
        }
        other, reply = await self.servers.post("/generate", body)
        try:
            states = states_of(reply, self._asked(len(whole)), int(teacher._config.hidden_size))
        except Failure as error:
            raise _named(other, error) from error
        # The state before a token is what predicts it.
        own = states[len(prompt) - 1 : -1]
        return [server, other], HiddenSignal(answer, own, logprobs.astype(np.float16), teacher.format)

    def _asked(self, tokens: int) -> Asked:
        assert self.weights is not None
        teacher = self.teacher
        return Asked(
            prompt_tokens=tokens,
            max_new_tokens=teacher.max_new_tokens,
            stops=teacher._stops,
            vocabulary=teacher._vocabulary,
            top_k=teacher.top_k,
            weights=self.weights.weight_version,
        )

    async def _confirm(self, server: Server) -> bool:
        """Return whether the server, asked from now on, has its weights still; one question serves all who wait."""
        since = time.monotonic()
        async with self._confirming[server.url]:
            if self._confirmed[server.url] >= since:
                return True
            began = time.monotonic()
            info = await self.servers.get(server, "/model_info")
            if info is None:
                return False
            self._compare(server, weights := _weights(info))
            self._same_files(server, weights)
            self._confirmed[server.url] = began
            return True


# Nothing of a server's preferred sampling is left to apply.
_PLAIN = {
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "repetition_penalty": 1.0,
}
_FLAT = {"return_flat_raw_output_top_logprobs": True, "return_flat_raw_top_logprobs_b64": True}


def _check_addresses(urls: Sequence[str]) -> None:
    if not urls:
        raise InputError("teacher.urls is empty: name the SGLang servers, as in http://127.0.0.1:30000")
    if wrong := [url for url in urls if not url.startswith(("http://", "https://"))]:
        raise InputError(f"teacher.urls: {wrong[0]!r} is no http:// or https:// address")


def _weights(info: Any) -> _Weights:
    if not isinstance(info, dict) or "model_path" not in info:
        raise InputError(f"/model_info said {str(info)[:200]!r}: teacher.urls names something else than SGLang servers")
    return _Weights(str(info["model_path"]), str(info.get("weight_version")))


def _named(server: Server, error: Failure) -> Failure:
    return Failure(f"{server.url}: {error}; nothing of this reply is stored")
