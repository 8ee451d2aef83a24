"""The teacher as a causal LM in this process: any local folder or hub name that transformers can load."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.checkpoint import digest, resolve
from distill.errors import InputError
from distill.generation import Sampling, greedy_batches, stop_and_pad
from distill.models import load_model
from distill.prompts import fingerprint, load_tokenizer, vocabulary_size
from distill.teachers.protocol import Signal


class LocalTeacher:
    """Answers, greedy or drawn as `drawn` says, and top-k log-probabilities; weights are loaded when it is asked.

    Raises InputError when the checkpoint is missing or not whole.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        top_k: int,
        max_new_tokens: int,
        batch_size: int = 64,
        device: str = "auto",
        drawn: Sampling | None = None,
    ) -> None:
        self.model, self.folder = str(model), resolve(model, "teacher.model")
        self.top_k, self.max_new_tokens = top_k, max_new_tokens
        self.batch_size, self.device, self.drawn = batch_size, device, drawn

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the checkpoint's files."""
        return digest(self.folder)

    @property
    def format(self) -> str:
        """Top-k with tail mass."""
        return f"topk:{self.top_k}"

    @property
    def sampling(self) -> str:
        """Greedy, or temperature and seed of the draw."""
        how = f"drawn:temperature={self.drawn.temperature}:seed={self.drawn.seed}" if self.drawn else "greedy"
        return f"{how}:max_new_tokens={self.max_new_tokens}"

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.folder)

    def check(self, tokenizer: Any, top_k: int) -> None:
        """Raise InputError when the student's tokenizer is another one, or has fewer than `top_k` tokens."""
        if fingerprint(tokenizer) != fingerprint(self._tokenizer):
            raise InputError(
                f"teacher.model {self.model!r} and student {tokenizer.name_or_path!r} have different "
                "tokenizers, so the teacher's signals mean other tokens to the student: use "
                "checkpoints with the same one"
            )
        size = vocabulary_size(tokenizer)
        if top_k > size:
            raise InputError(
                f"teacher.top_k = {top_k}, but the tokenizer of {self.model!r} has {size} tokens: lower it"
            )

    def ask(
        self, prompts: Sequence[NDArray[np.int32]], progress: Callable[[int, int], None] | None = None
    ) -> Iterator[tuple[int, Signal]]:
        """Yield (number of the prompt, its signal), a batch at a time, long prompts first."""
        model = load_model(self.folder, self.device, "teacher.model")
        stops, pad = stop_and_pad(model, self._tokenizer)
        done = 0
        for rows in greedy_batches(
            model,
            prompts,
            max_new_tokens=self.max_new_tokens,
            eos=stops,
            pad=pad,
            top_k=self.top_k,
            vocabulary=vocabulary_size(self._tokenizer),
            batch_size=self.batch_size,
            sampling=self.drawn,
        ):
            for row, found in rows:
                yield row, Signal(found.answer, found.ids, found.topk, found.tail)
            done += len(rows)
            if progress:
                progress(done, len(prompts))
