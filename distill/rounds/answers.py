"""The student's own answers of a round, as token ids, and what there is to say of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from distill.buying import obtain
from distill.generation import Sampling, stop_tokens
from distill.on_policy_settings import OnPolicySettings
from distill.prompts import load_tokenizer
from distill.settings import StudentSettings
from distill.signals import SignalStore
from distill.teacher_settings import TeacherSettings
from distill.teachers.local import LocalTeacher
from distill.teachers.protocol import Teacher

Progress = Callable[[int, int], None]


class Sampler(Protocol):
    """A student's checkpoint and how answers are drawn -> who answers, with one log-probability a token."""

    def __call__(self, checkpoint: Path, drawn: Sampling) -> Teacher:
        """Return who answers."""


@dataclass(frozen=True)
class Said:
    """What the student's answers of a round were like."""

    rows: int
    tokens: int
    mean_tokens: float  # stop tokens included
    empty: int  # a stop token and nothing before it
    cut: int  # as long as an answer may be, without a stop token


def in_process(student: StudentSettings, teacher: TeacherSettings) -> Sampler:
    """Return the sampler of this process: each answer is a pure function of (checkpoint, seed, prompt)."""

    def sampler(checkpoint: Path, drawn: Sampling) -> Teacher:
        return LocalTeacher(
            checkpoint,
            batch_size=teacher.batch_size,
            device=teacher.device,
            top_k=1,
            max_new_tokens=student.max_new_tokens,
            drawn=drawn,
        )

    return sampler


def sampled(
    store: SignalStore,
    sampler: Sampler,
    checkpoint: Path,
    drawn: Sampling,
    prompts: Sequence[NDArray[np.int32]],
    progress: Progress | None = None,
) -> list[NDArray[np.int32]]:
    """Return the student's answer to each prompt, token ids; those of a killed round are found again in `store`."""
    found = obtain(store, sampler(checkpoint, drawn), prompts, progress=progress)
    return [store.get(key.tobytes()).answer.astype(np.int32) for key in found.keys]


def described(answers: Sequence[NDArray[np.int32]], stops: Sequence[int]) -> Said:
    """Return what there is to say of answers; stops: the tokens that end one."""
    lengths = np.array([len(answer) for answer in answers], np.int64)
    ended = np.array([bool(np.isin(answer[-1], list(stops))) for answer in answers], np.bool_)
    return Said(
        rows=len(answers),
        tokens=int(lengths.sum()),
        mean_tokens=float(lengths.mean()) if len(answers) else 0.0,
        empty=int(((lengths == 1) & ended).sum()),
        cut=int((~ended).sum()),
    )


def drawn_by(settings: OnPolicySettings, seed: int) -> Sampling:
    """Return how the answers of a round are drawn."""
    return Sampling(settings.temperature, seed)


def stops_of(checkpoint: Path) -> list[int]:
    """Return the tokens that end a student's answer."""
    from transformers import AutoConfig, GenerationConfig

    try:
        own = GenerationConfig.from_pretrained(str(checkpoint))
    except OSError:  # the checkpoint has none of its own
        own = GenerationConfig.from_model_config(AutoConfig.from_pretrained(str(checkpoint)))
    return stop_tokens(own, load_tokenizer(checkpoint))
