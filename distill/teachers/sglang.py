"""The teacher on SGLang servers: token ids go there, answers come back with the top-k or the states of their tokens.

Here is what is checked before anything is sent; distill.teachers.sglang_job asks. Text never goes over the wire, so no
tokenizer of a server's takes part.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from distill.errors import InputError
from distill.generation import stop_tokens
from distill.prompts import vocabulary_size
from distill.teachers.asking import as_they_come
from distill.teachers.of_checkpoint import OfCheckpoint
from distill.teachers.protocol import AnySignal
from distill.teachers.servers import Servers, Spent, is_address
from distill.teachers.sglang_job import Job, Terms, fits

_Prompt: TypeAlias = NDArray[np.int32]


class SGLangTeacher(OfCheckpoint):
    """Answers through SGLang servers, or their router, that all serve the checkpoint `model`.

    urls: their addresses, or a function that is called for them when there is something to ask.

    Of the checkpoint itself tokenizer, configuration and digest are read. Drawn answers come from a server's own
    generator, so that another server draws others. At most `concurrency` requests are under way; one may take
    `request_seconds`, all of one list together `job_seconds`, and servers may be away for `outage_seconds`.

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

        async def begin(servers: Servers, ends: float) -> Callable[[_Prompt], Awaitable[AnySignal]]:
            self.spent, job = servers.spent, self._job(servers, ends)
            await job.meet(max((len(prompt) for prompt in prompts), default=0))
            return job.signal

        yield from as_they_come(
            self.urls, prompts, begin, limits=self._limits, job_seconds=self.job_seconds, progress=progress
        )

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

    def _terms(self) -> Terms:
        outputs, width = int(self._config.vocab_size), int(self._config.hidden_size)
        return Terms(self, self._stops, self._vocabulary, outputs, width, self.job_seconds)

    def _job(self, servers: Servers, ends: float) -> Job:
        return Job(self._terms(), servers, ends)

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
            fits(longest, self.max_new_tokens, int(context), f"the context of {self.model!r}")


def _check_addresses(urls: Sequence[str]) -> None:
    if not urls:
        raise InputError("teacher.urls is empty: name the SGLang servers, as in http://127.0.0.1:30000")
    if wrong := [url for url in urls if not is_address(url)]:
        raise InputError(f"teacher.urls: {wrong[0]!r} is no http:// or https:// address")
