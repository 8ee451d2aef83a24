"""The teacher in this process, scoring answers that another model has given.

Shapes: T tokens of an answer, k kept tokens, D width of the states, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.errors import InputError
from distill.likelihood import answer_logits, answer_states
from distill.loss.inside import Output, output_of
from distill.models import load_model
from distill.prompts import vocabulary_size
from distill.teachers.of_checkpoint import OfCheckpoint
from distill.teachers.protocol import AnySignal, HiddenSignal, Signal
from distill.teachers.scored import Progress, Spoken, check_rows

_ROWS = 256  # tokens whose logits are in memory at once
_LEAST = float(np.finfo(np.float16).min)


class LocalScores(OfCheckpoint):
    """The teacher in this process; loaded when it is asked."""

    def __init__(self, model: str | Path, *, batch_size: int = 64, device: str = "auto", **options: Any) -> None:
        """Options are those of OfCheckpoint."""
        super().__init__(model, **options)
        self.batch_size, self.device = batch_size, device

    def score(self, rows: Sequence[Spoken], progress: Progress | None = None) -> Iterator[tuple[int, AnySignal]]:
        """Yield (number of the row, the signal at its answer's tokens), a batch at a time, long rows first.

        Raises InputError for rows that the teacher cannot take, and for a teacher whose logits are not its output
        layer's alone: for top-k, one whose output layer cannot be told apart.
        """
        model = load_model(self.folder, self.device, "teacher.model")
        vocabulary = min(vocabulary_size(self.tokenizer), model.get_output_embeddings().weight.shape[0])
        self.check_width(model.get_output_embeddings().weight.shape[1])
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        check_rows(rows, vocabulary, context, f"teacher.model {self.model!r}")
        output = output_of(model, "teacher")
        if self.kind != "topk" and output != Output(1.0, None):
            raise InputError(
                f"teacher.model {self.model!r} scales or caps the logits of its output layer, so that they cannot be "
                "rebuilt from its states: set teacher.signals_format to topk:K"
            )
        order = sorted(range(len(rows)), key=lambda at: -len(rows[at]))
        for first in range(0, len(order), self.batch_size):
            chosen = order[first : first + self.batch_size]
            for at, states in zip(chosen, answer_states(model, output, [rows[at] for at in chosen]), strict=True):
                yield at, self._signal(model, output, rows[at].answer, states, vocabulary)
            if progress:
                progress(min(first + self.batch_size, len(order)), len(order))

    @torch.inference_mode()
    def _signal(
        self, model: Any, output: Output, answer: NDArray[np.int32], states: Tensor, vocabulary: int
    ) -> AnySignal:
        parts = []
        said = torch.from_numpy(answer.astype(np.int64)).to(states.device)[:, None]
        for first in range(0, len(states), _ROWS):
            logits = answer_logits(model, output, states[first : first + _ROWS], vocabulary)
            logprobs = logits.log_softmax(-1)  # (rows, V)
            own = logprobs.gather(-1, said[first : first + _ROWS])[:, 0]
            kept, ids = logprobs.topk(self.top_k, -1)
            # The others are added up themselves: 1 - sum(kept) would cancel to noise where the model is sure.
            tail = logprobs.scatter_(-1, ids, float("-inf")).exp_().sum(-1)
            parts.append((own, ids.int(), kept, tail))
        own, ids, kept, tail = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
        if self.kind != "topk":
            half = own.clamp(_LEAST, 0).half().numpy()
            return HiddenSignal(answer, states.float().cpu().numpy(), half, self.format)
        return Signal(answer, ids.numpy(), kept.clamp(min=_LEAST).half().numpy(), tail.numpy())
