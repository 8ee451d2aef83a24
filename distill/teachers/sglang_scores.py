"""A teacher on SGLang servers that scores answers it has not given: one prefill over prompt and answer, as token ids.

    top-k     POST /generate    ids, logprob_start_len where the answer begins -> the top-k of each answer token
    states    POST /generate    ids -> the final states of all tokens

Both make one token more, which is thrown away: without any a server gives no states. Guards, retries and the check of
weights are those of distill.teachers.sglang.
"""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np

from distill.teachers.protocol import AnySignal, HiddenSignal
from distill.teachers.scored import Progress, Spoken, check_rows
from distill.teachers.servers import Server, Servers
from distill.teachers.sglang import SGLangTeacher
from distill.teachers.sglang_job import PLAIN, Job, reading
from distill.teachers.sglang_replies import (
    Asked,
    scored_of,
    states_of,
    topk_of,
)

_FLAT = {"return_flat_raw_top_logprobs": True, "return_flat_raw_top_logprobs_b64": True}


class SGLangScores(SGLangTeacher):
    """What `SGLangTeacher` says of answers that were given by another model."""

    def score(self, rows: Sequence[Spoken], progress: Progress | None = None) -> Iterator[tuple[int, AnySignal]]:
        """Yield (number of the row, the signal at its answer's tokens) as they come; errors as of SGLangTeacher.ask."""
        return self.ask(cast(Any, rows), progress)  # which looks at their lengths alone

    def _check(self, rows: Sequence[Any]) -> None:
        self.check_width(int(self._config.hidden_size))
        context = getattr(self._config, "max_position_embeddings", None)
        # A token is made after the answer.
        check_rows(rows, self._vocabulary, context and int(context) - 1, f"teacher.model {self.model!r}")

    def _job(self, servers: Servers, ends: float) -> Job:
        return _Scoring(self._terms(), servers, ends)


class _Scoring(Job):
    async def _answer(self, row: Any) -> tuple[Server, AnySignal]:
        """Return (who was asked, the signal)."""
        teacher, start = self.teacher, len(row.prompt)
        body: dict[str, Any] = {
            "input_ids": row.whole.tolist(),
            "sampling_params": {"temperature": 0.0, "max_new_tokens": 1, **PLAIN},
            "return_logprob": True,
            # What is predicted from the last token of the prompt on. Without top-k one is asked for: it costs nothing.
            "logprob_start_len": start - 1,
            "top_logprobs_num": max(1, teacher.top_k),
            **_FLAT,
            **({} if teacher.top_k else {"return_hidden_states": True}),
        }
        server, reply = await self.servers.post("/generate", body)
        asked: Asked = self._asked(len(row))
        with reading(server):
            logprobs = scored_of(reply, row.answer, asked)
            if teacher.top_k:
                return server, topk_of(reply, row.answer, asked, "input")
            states = states_of(reply, asked, self.terms.width)
        # The state before a token is what predicts it.
        own, half = states[start - 1 : -1], np.maximum(logprobs, np.finfo(np.float16).min).astype(np.float16)
        return server, HiddenSignal(row.answer, own, half, teacher.format)
