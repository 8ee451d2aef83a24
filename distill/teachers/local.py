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
from distill.settings import StudentSettings, TeacherSettings
from distill.store.encodings import parse
from distill.teachers.protocol import AnySignal, HiddenSignal, Signal


class LocalTeacher:
    """Answers with top-k log-probabilities or final states, greedy or drawn as `drawn` says; loaded when it is asked.

    signals_format is "topk:K", "hidden:bf16", "hidden:int8" or "hidden:svdR" (distill.store.encodings), or empty for
    topk:`top_k`.

    Raises InputError when the checkpoint is missing or not whole, or for another format.
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
        signals_format: str = "",
    ) -> None:
        self.model, self.folder = str(model), resolve(model, "teacher.model")
        self._format, self._chosen = signals_format or f"topk:{top_k}", bool(signals_format)
        self.kind, self.number = parse(self._format, "teacher.signals_format")
        self.top_k, self.max_new_tokens = self.number if self.kind == "topk" else 0, max_new_tokens
        self.batch_size, self.device, self.drawn = batch_size, device, drawn

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the checkpoint's files."""
        return digest(self.folder)

    @property
    def format(self) -> str:
        """Top-k with tail mass, or what is kept of the final states."""
        return self._format

    @property
    def sampling(self) -> str:
        """Greedy, or temperature and seed of the draw."""
        how = f"drawn:temperature={self.drawn.temperature}:seed={self.drawn.seed}" if self.drawn else "greedy"
        return f"{how}:max_new_tokens={self.max_new_tokens}"

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.folder)

    def check(self, tokenizer: Any, top_k: int) -> None:
        """Raise InputError when the student's tokenizer is another one, or has fewer tokens than are to be kept.

        `top_k` is what the settings ask for; a format of its own goes before it, and states have no k.
        """
        if fingerprint(tokenizer) != fingerprint(self._tokenizer):
            raise InputError(
                f"teacher.model {self.model!r} and student {tokenizer.name_or_path!r} have different "
                "tokenizers, so the teacher's signals mean other tokens to the student: use "
                "checkpoints with the same one"
            )
        size = vocabulary_size(tokenizer)
        wanted = 0 if self.kind != "topk" else self.top_k if self._chosen else top_k
        if wanted > size:
            raise InputError(
                f"teacher.top_k = {wanted}, but the tokenizer of {self.model!r} has {size} tokens: lower it"
            )

    def ask(
        self, prompts: Sequence[NDArray[np.int32]], progress: Callable[[int, int], None] | None = None
    ) -> Iterator[tuple[int, AnySignal]]:
        """Yield (number of the prompt, its signal), a batch at a time, long prompts first.

        Raises InputError for hidden:svdR with as many directions as the states are wide.
        """
        model = load_model(self.folder, self.device, "teacher.model")
        width = model.get_output_embeddings().weight.shape[1]
        if self.kind == "svd" and self.number >= width:
            raise InputError(
                f"teacher.signals_format {self.format!r}: the states of {self.model!r} have width {width}; use fewer "
                "directions, or hidden:bf16"
            )
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
            hidden=self.kind != "topk",
        ):
            for row, found in rows:
                if found.states is None:
                    yield row, Signal(found.answer, found.ids, found.topk, found.tail)
                else:
                    yield row, HiddenSignal(found.answer, found.states, found.logprobs.astype(np.float16), self.format)
            done += len(rows)
            if progress:
                progress(done, len(prompts))


def local_teacher(student: StudentSettings, teacher: TeacherSettings, drawn: Sampling | None = None) -> LocalTeacher:
    """Return the teacher of these settings. Of drawn answers one log-probability is kept: nobody learns from them."""
    return LocalTeacher(
        teacher.model,
        top_k=teacher.top_k,
        max_new_tokens=student.max_new_tokens,
        batch_size=teacher.batch_size,
        device=teacher.device,
        drawn=drawn,
        signals_format="topk:1" if drawn else teacher.signals_format,
    )
