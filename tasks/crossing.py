"""What the teacher was asked and said, in the tokens of a student that has another tokenizer."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from distill.alignment.alignment import Alignment
from distill.mixing.selection import Chosen
from distill.signals import Obtained, SignalStore
from tasks.teaching import Teaching, teacher_of

if TYPE_CHECKING:
    from distill.alignment.answers import Report


@dataclass(frozen=True)
class Own:
    """Rows in the student's tokens."""

    prompts: list[NDArray[np.int32]]
    alignment: Alignment | None = (
        None  # of the rows that are trained; None where the teacher's tokens are the student's
    )
    told: dict[str, Any] = field(default_factory=dict)  # for the manifest


def own_tokens(
    rows: pd.DataFrame,
    asked: list[NDArray[np.int32]],
    obtained: Obtained,
    chosen: Chosen,
    start: Path,
    settings: Teaching,
) -> Own:
    """Return the prompts of all rows, and the answers of those that are trained, in the student's tokens.

    asked: the prompts in the tokens that the teacher was asked with, which are returned where they are the student's.
    Raises InputError when fewer tokens than teacher.min_aligned are aligned: nothing is trained then.
    """
    if not settings.teacher.cross_tokenizer:
        return Own(asked)
    from distill.alignment.rows import aligned
    from distill.prompts import encode, load_tokenizer

    tokenizer = load_tokenizer(start)
    alignment, report = aligned(
        SignalStore(settings.signals),
        obtained.keys[chosen.trained],
        teacher_of(settings),
        tokenizer,
        start,
        max_new_tokens=settings.student.max_new_tokens,
        least=settings.teacher.min_aligned,
    )
    if report is None:
        return Own(asked)
    encoded = encode(tokenizer, rows["prompt"].tolist(), settings.student.max_prompt_tokens)
    return Own(encoded.ids, alignment, {"alignment": {**_shares(report), "truncated_prompts": encoded.truncated}})


def _shares(report: "Report") -> dict[str, Any]:
    return {"told": report.told(), "aligned_share": round(report.aligned_share, 6), **asdict(report)}
