"""python -m benchmarks.policy [--seeds N] [--rows N] [--share S] [--rounds N] ...

On-policy beside off-policy: from the same student, on the same prompts and with as many steps, as a Markdown section
for RESULTS.md. A small teacher learns to go on with help-desk tickets; a student of half its width learns from it for
a while on other prompts, which is where both begin. Held-out prompts are asked afterwards.
"""

import argparse
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import UTC, date, datetime
from io import StringIO
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import machine
from demo.workspace import TeacherRecipe
from distill.on_policy_settings import OnPolicySettings
from distill.settings import StudentSettings, TrainingSettings
from distill.teacher_settings import TeacherSettings
from distill.teachers.protocol import AnySignal, Signal

Prompts = list[NDArray[np.int32]]
NEW, LONGEST, TOP_K = 24, 96, 32  # tokens of an answer, of a prompt; kept
MEASURES = (
    "greedy answers that are the teacher's",
    "their tokens that are the teacher's likeliest there",
    "nats from the teacher at a token it samples",
)
SEED = 11  # of the tickets


@dataclass(frozen=True)
class Material:
    """A teacher, a student that has learned a little, and prompts."""

    teacher: Path
    start: Path
    prompts: list[str]
    held: list[str]


def main(given: list[str] | None = None) -> None:
    """Measure and print."""
    words = sys.argv[1:] if given is None else given
    arguments = _parser().parse_args(words)
    print(f"## On-policy beside off-policy, {datetime.now(UTC):%Y-%m-%d}\n")
    print(f"    {shlex.join(['python', '-m', 'benchmarks.policy', *words])}\n")
    print(f"{machine('torch', 'transformers')}.")
    print(f"Load averages at the start: {', '.join(f'{minutes:.1f}' for minutes in os.getloadavg())}.\n")
    with tempfile.TemporaryDirectory() as folder:
        material = made(Path(folder), arguments)
        for line in compared(material, Path(folder), arguments):
            print(line, flush=True)


def made(folder: Path, arguments: argparse.Namespace) -> Material:
    """Make teacher, base and prompts: the first words of a ticket, which the teacher goes on with."""
    from demo import helpdesk
    from demo.teacher import make_student, train_teacher
    from demo.tokenizer import train_tokenizer

    texts = helpdesk.labelled(date(2025, 1, 1), date(2025, 3, 1), 200, SEED)["prompt"].tolist()
    pairs = [halves(text) for text in texts if len(text.split()) >= 8]
    tokenizer = train_tokenizer(texts, [], helpdesk.VOCABULARY)
    recipe = TeacherRecipe(**{**helpdesk.TEACHER, "steps": arguments.teacher_steps})
    prompts, answers = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    teacher = train_teacher(folder / "teacher", tokenizer, prompts, answers, **recipe)
    base = make_student(folder / "base", tokenizer, width=64, layers=2, heads=2, seed=0)
    different = list(dict.fromkeys(prompts))
    ends = np.cumsum([0, arguments.start_rows, arguments.rows, arguments.held])
    if len(different) < ends[-1]:
        raise SystemExit(f"there are {len(different)} different prompts: lower --start-rows, --rows or --held")
    first, learned, rest = (different[one:other] for one, other in pairwise(ends))
    learn(
        Material(teacher, base, first, []),
        folder / "start",
        settings_of("off_policy", 0, arguments.start_epochs, 3e-3),
        None,
    )
    return Material(teacher, folder / "start" / "student", learned, rest)


def halves(text: str) -> tuple[str, str]:
    """Return the first four words of a ticket, and the others."""
    words = text.split()
    return " ".join(words[:4]), " " + " ".join(words[4:])


def settings_of(mode: str, seed: int, epochs: float, rate: float) -> TrainingSettings:
    """Return how one of the two learns: they differ in the mode alone."""
    return TrainingSettings.model_validate(
        {"mode": mode, "seed": seed, "epochs": epochs, "learning_rate": rate, "warmup_steps": 10, "device": "cpu"}
    )


def learn(
    material: Material, folder: Path, training: TrainingSettings, policy: OnPolicySettings | None
) -> tuple[int, float]:
    """Train a student into folder/student; returns its steps, and seconds without those of the teacher's answers."""
    from distill.prepare import prepare
    from distill.rounds.alone import on_policy
    from distill.trainer import train

    student = StudentSettings(base=str(material.start), max_prompt_tokens=LONGEST, max_new_tokens=NEW)
    teacher = TeacherSettings(
        model=str(material.teacher), top_k=TOP_K, device="cpu", signals=f"{folder.parent}/signals"
    )
    with redirect_stdout(StringIO()):  # the section is all that is printed
        request = prepare(material.prompts, student=student, teacher=teacher, training=training, output=folder)
        began = time.perf_counter()
        if policy is None:
            train(request)
        else:
            on_policy(student, teacher, policy)(request)
    return len((folder / "metrics.jsonl").read_text().splitlines()), time.perf_counter() - began


def measured(material: Material, student: Path) -> tuple[float, float, float]:
    """Return MEASURES of a student over the held-out prompts."""
    from distill.generation import Sampling
    from distill.prompts import encode, load_tokenizer
    from distill.teachers.local import LocalTeacher
    from distill.teachers.local_scores import LocalScores
    from distill.teachers.scored import Spoken

    prompts = encode(load_tokenizer(material.teacher), material.held, LONGEST).ids

    def answers(model: Path, drawn: Sampling | None = None) -> list[Signal]:
        teacher = LocalTeacher(model, top_k=TOP_K, max_new_tokens=NEW, device="cpu", drawn=drawn)
        return _in_order(teacher.ask(prompts))

    def scores(said: list[Signal]) -> list[Signal]:
        spoken = [Spoken(prompt, own.answer) for prompt, own in zip(prompts, said, strict=True)]
        return _in_order(LocalScores(material.teacher, top_k=TOP_K, max_new_tokens=1, device="cpu").score(spoken))

    said, wanted, sampled = answers(student), answers(material.teacher), answers(student, Sampling(1.0, SEED))
    same = [own.answer.tolist() == theirs.answer.tolist() for own, theirs in zip(said, wanted, strict=True)]
    there = zip(said, scores(said), strict=True)
    likeliest = [same for own, theirs in there for same in (theirs.ids[:, 0] == own.answer).tolist()]
    both = zip(sampled, scores(sampled), strict=True)
    away = [_divergence(own, theirs, at) for own, theirs in both for at in range(len(own.answer))]
    return float(np.mean(same)), float(np.mean(likeliest)), float(np.mean(away))


def _in_order(found: Iterable[tuple[int, AnySignal]]) -> list[Signal]:
    return [signal for _, signal in sorted(found, key=lambda pair: pair[0]) if isinstance(signal, Signal)]


def compared(material: Material, folder: Path, arguments: argparse.Namespace) -> list[str]:
    """Return the section's lines: the start, and for each seed and mode what came of as many steps."""
    policy = OnPolicySettings(
        rounds=arguments.rounds,
        share=arguments.share,
        divergence=arguments.divergence,
        temperature=arguments.temperature,
    )
    found: dict[str, list[tuple[float, ...]]] = {"off_policy": [], "on_policy": []}
    steps, seconds = set(), {"off_policy": 0.0, "on_policy": 0.0}
    for seed in range(arguments.seeds):
        for mode in found:
            training = settings_of(mode, seed, arguments.epochs, arguments.rate)
            own = folder / f"{mode}-{seed}"
            taken, spent = learn(material, own, training, policy if mode == "on_policy" else None)
            steps.add(taken)
            seconds[mode] += spent
            found[mode].append(measured(material, own / "student"))
    begun = measured(material, material.start)
    lines = [
        f"{len(material.held)} held-out prompts, answers of at most {NEW} tokens, {arguments.seeds} seeds, "
        f"{' or '.join(map(str, sorted(steps)))} steps each, {len(material.prompts)} prompts; on-policy: "
        f"{policy.rounds} rounds, share {policy.share:g} of own answers at temperature {policy.temperature:g}, "
        f"{policy.divergence} on them; from a student of {arguments.start_epochs:g} passes over "
        f"{arguments.start_rows} other prompts. Mean over seeds (each seed).\n",
        f"| | {' | '.join(MEASURES)} | s a training |",
        "|---|---|---|---|---|",
        f"| start | {' | '.join(f'{value:.3f}' for value in begun)} | |",
    ]
    for mode, values in found.items():
        cells = [_cell([value[at] for value in values]) for at in range(len(MEASURES))]
        lines.append(f"| {mode.replace('_', '-')} | {' | '.join(cells)} | {seconds[mode] / arguments.seeds:.1f} |")
    differences = zip(found["on_policy"], found["off_policy"], strict=True)
    apart = [[a - b for a, b in zip(one, other, strict=True)] for one, other in differences]
    cells = [_cell([row[at] for row in apart], signed=True) for at in range(len(MEASURES))]
    return [*lines, f"| on-policy minus off-policy | {' | '.join(cells)} | |", ""]


def _divergence(own: Signal, theirs: Signal, at: int) -> float:
    """Return the reverse Kullback-Leibler divergence at a token, with all that not both keep as one outcome [nats]."""
    known = dict(zip(theirs.ids[at].tolist(), theirs.logprobs[at].astype(float).tolist(), strict=True))
    shared = [(float(p), known[t]) for t, p in zip(own.ids[at].tolist(), own.logprobs[at], strict=True) if t in known]
    total = sum(np.exp(p) * (p - q) for p, q in shared)
    rest, other = (max(1e-9, 1 - sum(np.exp(pair[side]) for pair in shared)) for side in (0, 1))
    return float(total + rest * np.log(rest / other))


def _cell(values: Sequence[float], *, signed: bool = False) -> str:
    shown: Callable[[float], str] = (lambda v: f"{v:+.3f}") if signed else (lambda v: f"{v:.3f}")
    return f"{shown(statistics.fmean(values))} ({', '.join(map(shown, values))})"


def _parser() -> argparse.ArgumentParser:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.policy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--seeds", type=int, default=3, metavar="N", help="trainings of each kind")
    add("--rows", type=int, default=1200, metavar="N", help="prompts that are learned from")
    add("--held", type=int, default=400, metavar="N", help="prompts that are asked afterwards")
    add("--epochs", type=float, default=4.0, help="passes over the prompts, of both")
    add("--rate", type=float, default=1e-3, help="peak learning rate of both")
    add("--rounds", type=int, default=4, metavar="N", help="of the on-policy training")
    add("--share", type=float, default=0.25, help="of a round's rows that the student answers")
    add("--divergence", default="reverse_kl", help="on the student's own answers")
    add("--temperature", type=float, default=1.0, help="of the student's answers")
    add("--start-rows", type=int, default=1200, metavar="N", help="other prompts, which the start has learned from")
    add("--start-epochs", type=float, default=12.0, help="passes over other prompts, of the student that both begin as")
    add("--teacher-steps", type=int, default=300, metavar="N", help="of the teacher's own training")
    return parser


if __name__ == "__main__":
    main()
