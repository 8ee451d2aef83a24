"""What teachers with a checkpoint have in common: who they are, what they keep, and whether a student can learn."""

from functools import cached_property
from pathlib import Path
from typing import Any

from distill.checkpoint import digest, resolve
from distill.errors import InputError
from distill.generation import Sampling
from distill.prompts import fingerprint, load_tokenizer, vocabulary_size
from distill.store.encodings import parse


class OfCheckpoint:
    """The part of a teacher that needs no weights in memory.

    signals_format is "topk:K", "hidden:bf16", "hidden:int8" or "hidden:svdR" (distill.store.encodings), or empty for
    topk:`top_k`. Answers are greedy, or drawn as `drawn` says.

    Raises InputError when the checkpoint is missing or not whole, or for another format.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        top_k: int,
        max_new_tokens: int,
        drawn: Sampling | None = None,
        signals_format: str = "",
        cross_tokenizer: bool = False,
    ) -> None:
        self.model, self.folder = str(model), resolve(model, "teacher.model")
        self._format, self._chosen = signals_format or f"topk:{top_k}", bool(signals_format)
        self.kind, self.number = parse(self._format, "teacher.signals_format")
        self.top_k, self.max_new_tokens = self.number if self.kind == "topk" else 0, max_new_tokens
        self.drawn, self.cross_tokenizer = drawn, cross_tokenizer

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
    def tokenizer(self) -> Any:
        """The checkpoint's own."""
        return load_tokenizer(self.folder)

    def asked_with(self, tokenizer: Any) -> Any:
        """Return the tokenizer of prompts and answers: the student's, or its own where the student's is another one.

        Raises InputError for another one unless `cross_tokenizer` is set.
        """
        if fingerprint(tokenizer) == fingerprint(self.tokenizer):
            return tokenizer
        if not self.cross_tokenizer:
            raise InputError(
                f"teacher.model {self.model!r} and student {tokenizer.name_or_path!r} have different "
                "tokenizers, so the teacher's signals mean other tokens to the student: use "
                "checkpoints with the same one, or set teacher.cross_tokenizer to true"
            )
        if self.kind != "topk":
            raise InputError(
                f"teacher.signals_format {self.format!r}: teacher.model {self.model!r} and student "
                f"{tokenizer.name_or_path!r} have different tokenizers, and states give the teacher's tokens alone: "
                "use topk:K"
            )
        return self.tokenizer

    def check(self, tokenizer: Any, top_k: int) -> None:
        """Raise InputError when the student could not learn from the signals, or more tokens are kept than there are.

        A student with another tokenizer can, if `cross_tokenizer` is set. `top_k` is what the settings ask for; a
        format of its own goes before it, and states have no k.
        """
        size = vocabulary_size(self.asked_with(tokenizer))
        wanted = 0 if self.kind != "topk" else self.top_k if self._chosen else top_k
        if wanted > size:
            raise InputError(
                f"teacher.top_k = {wanted}, but the tokenizer of {self.model!r} has {size} tokens: lower it"
            )

    def check_width(self, width: int) -> None:
        """Raise InputError for hidden:svdR with as many directions as the states are wide."""
        if self.kind == "svd" and self.number >= width:
            raise InputError(
                f"teacher.signals_format {self.format!r}: the states of {self.model!r} have width {width}; use fewer "
                "directions, or hidden:bf16"
            )
