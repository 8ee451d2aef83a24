"""One list of prompts, asked of SGLang servers.

    answer     POST /generate       token ids -> the answer's token ids, with the top-k of each as flat base64, or the
                                    final states that they were predicted from
    weights    GET /model_info      path and version, asked again after every answer (distill.teachers.sglang_weights)

An answer counts once its server has said, after it, that its weights are still the same ones.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import numpy as np
from numpy.typing import NDArray

from distill.checkpoint import digest
from distill.errors import Failure, InputError
from distill.teachers.of_checkpoint import OfCheckpoint
from distill.teachers.protocol import AnySignal, HiddenSignal
from distill.teachers.servers import Absent, Server, Servers
from distill.teachers.sglang_replies import Asked, answer_of, answer_states_of, topk_of
from distill.teachers.sglang_weights import Behind, Weights, weights_of

_UNCONFIRMED = 10  # answers to one prompt in a row, after each of which its server was gone


@dataclass(frozen=True)
class Terms:
    """What is asked of each prompt."""

    teacher: OfCheckpoint
    stops: Sequence[int]
    vocabulary: int  # tokens that a text can have
    outputs: int  # of the model's last layer, padding included
    width: int  # of the final states
    job_seconds: float


class Job:
    """The asking of one list of prompts."""

    def __init__(self, terms: Terms, servers: Servers, ends: float) -> None:
        self.terms, self.teacher, self.servers, self.ends = terms, terms.teacher, servers, ends
        self.weights: Weights | None = None
        self.behind = Behind(servers)
        self._confirmed = {server.url: 0.0 for server in servers.servers}
        self._confirming = {server.url: anyio.Lock() for server in servers.servers}

    async def meet(self, longest: int) -> None:
        """Raise InputError unless the servers that are there serve this checkpoint, and one and the same version."""
        teacher = self.teacher
        own = json.loads((teacher.folder / "config.json").read_text("utf-8"))
        found = [pair for server in self.servers.servers for pair in await self.behind.models(server)]
        if not found:
            raise self.servers.nobody()
        for server, info in found:
            weights, kind = weights_of(info), info.get("architectures")
            if kind and own.get("architectures") and kind != own["architectures"]:
                raise InputError(
                    f"{server.url} serves {weights.model_path!r}, a {kind[0]}, but teacher.model "
                    f"{teacher.model!r} is a {own['architectures'][0]}: start the server with that checkpoint"
                )
            self._same_files(server, weights)
            self._compare(server, weights)
        for server, _ in found:
            with suppress(Absent):  # a router whose servers are not reached from here: they refuse what is too long
                info = await self.servers.get(server, "/server_info")
                if (context := (info or {}).get("max_req_input_len")) is not None:
                    fits(longest, teacher.max_new_tokens, int(context), f"what {server.url} takes")

    def _same_files(self, server: Server, weights: Weights) -> None:
        """Compare digests where the server's checkpoint can be read from here."""
        teacher, served = self.teacher, Path(weights.model_path)
        if served.is_dir() and (found := digest(served)) != teacher.digest:
            raise InputError(
                f"{server.url} serves {weights.model_path!r} with digest {found[:12]}, but teacher.model "
                f"{teacher.model!r} has {teacher.digest[:12]}: start the server with that checkpoint"
            )

    def _compare(self, server: Server, weights: Weights) -> None:
        self.weights = self.weights or weights
        if weights != self.weights:
            raise Failure(
                f"{server.url}: expected the weights {self.weights}, got {weights}: servers of one teacher have the "
                "same ones, and keep them while they are asked; what came after the change is not stored"
            )

    async def signal(self, prompt: NDArray[np.int32]) -> AnySignal:
        """Return the teacher's answer to a prompt, confirmed by the server that gave it."""
        with anyio.move_on_after(self.ends - time.monotonic()):
            for _ in range(_UNCONFIRMED):
                server, signal = await self._answer(prompt)
                if await self._confirm(server):
                    return signal
                # It went away: nobody knows with which weights it answered.
            raise Failure(
                f"{server.url} answered {_UNCONFIRMED} times, and did not say afterwards which weights it has "
                "(/model_info); what was confirmed before is stored: look into the server's log"
            )
        raise Failure(
            f"teacher.job_seconds = {self.terms.job_seconds:g} are over; what was answered before is stored: "
            "ask again for the rest"
        )

    async def _answer(self, prompt: NDArray[np.int32]) -> tuple[Server, AnySignal]:
        """Return (who was asked, the signal)."""
        teacher, asked = self.teacher, self._asked(len(prompt))
        server, reply = await self.servers.post("/generate", self._body(prompt))
        with reading(server):
            answer, logprobs = answer_of(reply, asked)
            if teacher.top_k:
                return server, topk_of(reply, answer, asked)
            states = answer_states_of(reply, answer, asked, self.terms.width)
        return server, HiddenSignal(answer, states, logprobs.astype(np.float16), teacher.format)

    def _body(self, prompt: NDArray[np.int32]) -> dict[str, Any]:
        teacher, drawn = self.teacher, self.teacher.drawn
        return {
            "input_ids": prompt.tolist(),
            "sampling_params": {
                "temperature": drawn.temperature if drawn else 0.0,
                **({"sampling_seed": drawn.seed} if drawn else {}),
                "max_new_tokens": teacher.max_new_tokens,
                "stop_token_ids": self.terms.stops,
                **PLAIN,
                **({} if teacher.top_k else _LAST),
            },
            "return_logprob": True,
            **({"top_logprobs_num": teacher.top_k, **_FLAT} if teacher.top_k else {"return_hidden_states": True}),
        }

    def _asked(self, tokens: int) -> Asked:
        assert self.weights is not None
        teacher = self.teacher
        return Asked(
            prompt_tokens=tokens,
            max_new_tokens=teacher.max_new_tokens,
            stops=self.terms.stops,
            vocabulary=self.terms.vocabulary,
            outputs=self.terms.outputs,
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
            if not (found := await self.behind.models(server)):
                return False
            for each, info in found:
                self._compare(each, weights := weights_of(info))
                self._same_files(each, weights)
            self._confirmed[server.url] = began
            return True


# Nothing of a server's preferred sampling is left to apply.
PLAIN = {
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "repetition_penalty": 1.0,
}
# Of the prompt the last state alone: it predicts the answer's first token (deployments/sglang/plugin).
_LAST = {"custom_params": {"states_of_prompt": 1}}
_FLAT = {"return_flat_raw_output_top_logprobs": True, "return_flat_raw_top_logprobs_b64": True}


def fits(longest: int, new: int, context: int, whose: str) -> None:
    """Raise InputError unless a prompt of `longest` tokens and `new` ones fit into a context."""
    if longest + new > context:
        raise InputError(
            f"a prompt of {longest} tokens and an answer of {new} exceed {whose}, "
            f"{context} tokens: lower student.max_prompt_tokens or student.max_new_tokens"
        )


@contextmanager
def reading(server: Server) -> Iterator[None]:
    """Raise Failure, with the server's address, for whatever is wrong with the reply that is read in the block."""
    try:
        yield
    except Failure as error:
        raise Failure(f"{server.url}: {error}; nothing of this reply is stored") from error
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise Failure(
            f"{server.url}: expected a reply of SGLang's /generate, got one that cannot be read "
            f"({type(error).__name__}: {error}); nothing of this reply is stored"
        ) from error
