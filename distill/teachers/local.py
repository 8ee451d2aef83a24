"""The teacher as a causal LM in this process: any local folder or hub name that transformers can load."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.generation import greedy_batches, stop_and_pad
from distill.models import load_model
from distill.prompts import vocabulary_size
from distill.teachers.of_checkpoint import OfCheckpoint
from distill.teachers.protocol import AnySignal, HiddenSignal, Signal


class LocalTeacher(OfCheckpoint):
    """Answers with top-k log-probabilities or final states; loaded when it is asked."""

    def __init__(self, model: str | Path, *, batch_size: int = 64, device: str = "auto", **options: Any) -> None:
        """Options are those of OfCheckpoint."""
        super().__init__(model, **options)
        self.batch_size, self.device = batch_size, device

    def ask(
        self, prompts: Sequence[NDArray[np.int32]], progress: Callable[[int, int], None] | None = None
    ) -> Iterator[tuple[int, AnySignal]]:
        """Yield (number of the prompt, its signal), a batch at a time, long prompts first.

        Raises InputError for hidden:svdR with as many directions as the states are wide.
        """
        model = load_model(self.folder, self.device, "teacher.model")
        self.check_width(model.get_output_embeddings().weight.shape[1])
        stops, pad = stop_and_pad(model, self.tokenizer)
        done = 0
        for rows in greedy_batches(
            model,
            prompts,
            max_new_tokens=self.max_new_tokens,
            eos=stops,
            pad=pad,
            top_k=self.top_k,
            vocabulary=vocabulary_size(self.tokenizer),
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
