"""What a mixture says of the answers of a teacher with another tokenizer."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

NONE = -1  # no token of the teacher's is compared here


@dataclass(frozen=True)
class Alignment:
    """The answers of a mixture's rows, one after the other, A tokens of the student in all; V is the teacher's."""

    answers: NDArray[np.int32]  # (A,)
    offsets: NDArray[np.int64]  # (rows + 1,) where each begins
    theirs: NDArray[np.int32]  # (A,) as of distill.alignment.answers.Answer
    matched: NDArray[np.bool_]  # (A,) as of distill.alignment.answers.Answer
    token_map: NDArray[np.int32]  # (V,) the student's token for each of the teacher's, -1 where it has none

    def answer(self, row: int) -> NDArray[np.int32]:
        """Return the token ids of one answer, (length,)."""
        return self.answers[self.offsets[row] : self.offsets[row + 1]]

    @cached_property
    def shared(self) -> NDArray[np.int64]:
        """The student's tokens that the teacher has, sorted."""
        return np.unique(self.token_map[self.token_map >= 0]).astype(np.int64)
