"""What the teacher was asked and said, in the tokens of a student that has another tokenizer."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from distill.alignment.alignment import Alignment
from distill.mixing.selection import Chosen
from distill.obtained import Obtained, nothing
from distill.signals import Keys, SignalStore
from tasks.teaching import Teaching, teacher_of

if TYPE_CHECKING:
    from distill.alignment.answers import Report


TRIED = 64  # rows that are asked about first
_SLACK = 0.8  # of the limit: the share of so few rows may be off


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
    from distill.prompts import encode, load_tokenizer

    alignment, report = _aligned(obtained.keys[chosen.trained], start, settings)
    if report is None:
        return Own(asked)
    encoded = encode(load_tokenizer(start), rows["prompt"].tolist(), settings.student.max_prompt_tokens)
    return Own(encoded.ids, alignment, {"alignment": {**_shares(report), "truncated_prompts": encoded.truncated}})


def try_out(prompts: list[str], start: Path, settings: Teaching, ask: Callable[[list[str]], Obtained]) -> Obtained:
    """Ask about some of many prompts, and raise InputError when their answers are aligned too badly to go on.

    So that a teacher that does not fit is not paid for all of them. Returns what it took to ask, and no rows: who then
    asks about all of them finds these among what it has bought.
    """
    if not settings.teacher.cross_tokenizer or len(prompts) < 4 * TRIED:
        return nothing()
    obtained = ask(prompts[:: len(prompts) // TRIED][:TRIED])
    _aligned(obtained.keys, start, settings, slack=_SLACK)
    return replace(nothing(), effort=obtained.effort)


def _aligned(
    keys: Keys, start: Path, settings: Teaching, slack: float = 1.0
) -> tuple[Alignment | None, "Report | None"]:
    from distill.alignment.rows import aligned
    from distill.prompts import load_tokenizer

    return aligned(
        SignalStore(settings.signals),
        keys,
        teacher_of(settings),
        load_tokenizer(start),
        start,
        max_new_tokens=settings.student.max_new_tokens,
        least=settings.teacher.min_aligned,
        slack=slack,
    )


def _shares(report: "Report") -> dict[str, Any]:
    return {"told": report.told(), "aligned_share": round(report.aligned_share, 6), **asdict(report)}
