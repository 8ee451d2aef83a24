"""Prompts as text, for teachers whose tokenizer is not the student's; they are found by the student's token ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.errors import Failure, InputError
from distill.prompts import Encoded, frame


@dataclass(frozen=True)
class Spoken:
    """The student's tokenizer, and what its prompts say."""

    tokenizer: Any
    texts: Mapping[bytes, str] = field(default_factory=dict, repr=False)

    def text(self, prompt: NDArray[np.int32]) -> str:
        """Return what a prompt says; Failure for one whose text was not given."""
        try:
            return self.texts[prompt.tobytes()]
        except KeyError:
            raise Failure(
                f"the text of a prompt of {len(prompt)} tokens was not given: hand over those that were encoded"
            ) from None


def spoken(tokenizer: Any, prompts: Sequence[str], encoded: Encoded) -> Spoken:
    """Return the texts of prompts as far as the student sees them: of a longer one its end.

    Raises InputError where a template changes the text, so that what is left of it cannot be told.
    """
    texts = {ids.tobytes(): prompt for prompt, ids in zip(prompts, encoded.ids, strict=True)}
    if encoded.truncated:
        head, _ = frame(tokenizer)
        longest = max(map(len, encoded.ids))  # no other row can have been cut
        for prompt, ids in zip(prompts, encoded.ids, strict=True):
            if len(ids) == longest:
                texts[ids.tobytes()] = _seen(tokenizer, prompt, ids, head)
    return Spoken(tokenizer, texts)


def _seen(tokenizer: Any, prompt: str, ids: NDArray[np.int32], head: int) -> str:
    """Return what is left of a text; `head`: tokens that the template puts before it, which a cut prompt keeps."""
    turn = [{"role": "user", "content": prompt}]
    whole = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    given = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    if len(given["input_ids"]) <= len(ids):
        return prompt
    first = len(given["input_ids"]) - (len(ids) - head)
    begins = whole.find(prompt)
    if begins < 0:
        raise InputError(
            f"a prompt of {len(given['input_ids'])} tokens is cut to {len(ids)}, and the chat template of "
            f"{tokenizer.name_or_path!r} changes its text, so that nobody can say what is left of it: raise "
            "student.max_prompt_tokens"
        )
    return prompt[max(0, int(given["offset_mapping"][first][0]) - begins) :]
