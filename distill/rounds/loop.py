"""On-policy training: in each round the student answers, the teacher scores its answers, and the student learns.

    output/round-1/mixture.safetensors   the round's rows: the teacher's answers, and the student's own with its scores
    output/round-1/round.json            what came of it; a round that has it is over
    output/rounds.json                   by which settings rounds are made, and from what
    output/answers/                      the student's answers (a store of its own)
    output/checkpoints/, metrics.jsonl   one training through all rounds: weights, moments and learning rate go on
    output/student/, outcome.json        after the last round

The student of a round is the one that the round before has exported; that of the first is where the training starts.
A killed training goes on in its round: answers and scores that are stored are not asked for again, and the steps go
on from the last training state.
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill import mixture
from distill.batching.order import Order
from distill.errors import InputError
from distill.mixture import Mixture
from distill.obtained import Obtained
from distill.on_policy_settings import OnPolicySettings
from distill.request import Part, TrainRequest
from distill.rounds import answers, plan
from distill.rounds.answers import Said, Sampler
from distill.settings import identifies
from distill.signals import SignalStore
from distill.teachers.scored import Spoken
from distill.training import belonging, outcome, validation

ROUND, OWN = "round.json", "own.json"


def counts_of(found: Obtained) -> dict[str, Any]:
    """Return how many rows and tokens were bought, and how many found again."""
    return {name: getattr(found, name) for name in ("bought_rows", "reused_rows", "bought_tokens", "reused_tokens")}


@dataclass(frozen=True)
class Helpers:
    """Who does the work of a round."""

    sampler: Sampler
    # Has the teacher's signals for the answers of a round of this number stored. What an earlier round has bought is
    # found again.
    score: Callable[[Sequence[Spoken], int], Obtained]
    train: Callable[[Path], None]  # trains what a request.json says, to its end
    told: Callable[[str], None]  # is told a line now and then
    progress: answers.Progress | None = None  # of the student's answers
    counted: Callable[[Obtained], dict[str, Any]] = counts_of  # what a round says of its scores


def learn(request: TrainRequest, settings: OnPolicySettings, helpers: Helpers) -> list[dict[str, Any]]:
    """Train what the request asks for in rounds, as many steps as off-policy; returns what came of each round.

    The request's mixture has the teacher's answers to all rows. Raises what sampling, scoring and training raise.
    """
    output, rows = Path(request.output), mixture.load(Path(request.mixture))
    _claim(request, settings)
    done: list[dict[str, Any]] = []
    held = validation.rows_of(rows, request.settings)
    planned = _planned(request, settings, rows, held)
    if len(planned) < settings.rounds:
        helpers.told(f"on_policy.rounds = {settings.rounds}, but the training has {len(planned)} steps: one a round")
    for each in planned:
        folder = output / f"round-{each.number}"
        if not (folder / ROUND).is_file():
            student = output / f"round-{each.number - 1}" / "student" if each.number > 1 else Path(request.start)
            _round(request, settings, helpers, rows, held, each, planned[-1].last, folder, student)
        shutil.rmtree(output / f"round-{each.number - 1}" / "student", ignore_errors=True)  # has answered
        done.append(json.loads((folder / ROUND).read_text("utf-8")))
        if done[-1]["stopped_early"]:
            break
    last = output / f"round-{done[-1]['round']}"
    if (last / "student").is_dir():
        shutil.copy2(last / outcome.OUTCOME, output / outcome.OUTCOME)
        shutil.rmtree(output / "student", ignore_errors=True)
        os.replace(last / "student", output / "student")
    return done


def _claim(request: TrainRequest, settings: OnPolicySettings) -> None:
    """Write down by which settings the rounds of a folder are made, and from what; InputError where it has others."""
    path = Path(request.output) / belonging.ROUNDS
    made_from = belonging.check(request, Path(request.mixture))
    asked = _telling(settings.model_dump(mode="json"))
    before = _telling(json.loads(path.read_text("utf-8"))) if path.is_file() else asked
    usual = OnPolicySettings().model_dump(mode="json")  # an older version wrote fewer settings
    both = [(name, {**usual, **before}[name], {**usual, **asked}[name]) for name in {**asked, **before}]
    other = [f"{name} {was!r}, now {now!r}" for name, was, now in both if was != now]
    if other:
        raise InputError(
            f"{str(path.parent)!r} has rounds of other settings (on_policy: {'; '.join(other)}): name another output, "
            "or delete that folder to start anew"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, {**asked, belonging.MADE: made_from})


def _telling(settings: dict[str, Any]) -> dict[str, Any]:
    """Return those that decide what comes out, and not where who answers lies."""
    fields = OnPolicySettings.model_fields
    return {
        name: value
        for name, value in settings.items()
        if name in fields and identifies(fields[name], value, "on_policy")
    }


def summed(done: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what came of all rounds together."""
    rows = sum(each["own"]["rows"] for each in done)
    tokens = sum(each["own"]["tokens"] for each in done)
    counts = {name: sum(each["own"][name] for each in done) for name in ("empty", "cut")}
    return {
        "rounds": len(done),
        "own_rows": rows,
        "logged_rows": sum(each["logged_rows"] for each in done),
        "own_tokens": tokens,
        "mean_tokens": tokens / rows if rows else 0.0,
        "empty_share": counts["empty"] / rows if rows else 0.0,
        "cut_share": counts["cut"] / rows if rows else 0.0,
        **{name: sum(each[name] for each in done) for name in ("bought_rows", "reused_rows")},
        "scored_tokens": sum(each["bought_tokens"] + each["reused_tokens"] for each in done),
    }


def _planned(
    request: TrainRequest, settings: OnPolicySettings, rows: Mixture, held: NDArray[np.bool_]
) -> list[plan.Round]:
    seed, lengths = request.settings.seed, SignalStore(request.signals).tokens(rows.keys)
    steps = Order(lengths, request.settings.tokens_per_step, seed, held).steps(request.epochs)
    learnable = np.flatnonzero(~held)
    return plan.rounds_of(steps, request.epochs, settings.rounds, settings.share, learnable, seed)


def _round(
    request: TrainRequest,
    settings: OnPolicySettings,
    helpers: Helpers,
    rows: Mixture,
    held: NDArray[np.bool_],
    each: plan.Round,
    steps: int,
    folder: Path,
    student: Path,
) -> None:
    """Do a round, from wherever it was left."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "mixture.safetensors"
    if not (folder / "student").is_dir():
        spoken = _spoken(request, settings, helpers, rows, each, student)
        found = helpers.score(spoken, each.number)
        _mix(path, rows, held, each, found.keys)
        said = answers.described([row.answer for row in spoken], answers.stops_of(student))
        if not (folder / OWN).is_file():  # a killed round finds its scores again, and knows no more what they took
            _write(folder / OWN, {"own": asdict(said), **helpers.counted(found)})
        helpers.told(_told(each, said, found))
        part = Part(each.first, each.last, steps, str(request.output), settings.divergence)
        replace(request, mixture=str(path), output=str(folder), part=part).save(folder / "request.json")
        helpers.train(folder / "request.json")
    ended = outcome.read(folder)
    counts = json.loads((folder / OWN).read_text("utf-8"))
    _write(
        folder / ROUND,
        {
            "round": each.number,
            "first_step": each.first + 1,
            "last_step": ended["steps"],
            "stopped_early": ended["stopped_early"],
            "logged_rows": int((~each.own).sum()),
            **counts,
            "rows": ended["rows"],
            "not_reached_because": ended["not_reached_because"],
        },
    )


def _spoken(
    request: TrainRequest,
    settings: OnPolicySettings,
    helpers: Helpers,
    rows: Mixture,
    each: plan.Round,
    student: Path,
) -> list[Spoken]:
    """Return the student's answers to the prompts of the round that it answers itself."""
    prompts = [rows.prompt(int(row)) for row in each.rows[each.own]]
    drawn = answers.drawn_by(settings, plan.seed_of(request.settings.seed, each.number))
    store = SignalStore(Path(request.output) / "answers")
    found = answers.sampled(store, helpers.sampler, student, drawn, prompts, helpers.progress)
    return [Spoken(prompt, answer) for prompt, answer in zip(prompts, found, strict=True)]


def _mix(path: Path, rows: Mixture, held: NDArray[np.bool_], each: plan.Round, scored: NDArray[np.uint8]) -> None:
    """Write the round's rows, then those that are held out for validation, whose answers are the teacher's."""
    chosen = np.concatenate([each.rows, np.flatnonzero(held)])
    own = np.concatenate([each.own, np.zeros(int(held.sum()), np.bool_)])
    keys = rows.keys[chosen].copy()
    keys[own] = scored
    weights = rows.weights[chosen].astype(np.float64)
    kept_out = np.arange(len(chosen)) >= len(each.rows)
    partial = path.with_name(f"{path.name}.partial")
    prompts = [rows.prompt(int(row)) for row in chosen]
    mixture.save(partial, prompts, keys, (weights / weights.mean()).astype(np.float32), own=own, held=kept_out)
    os.replace(partial, path)


def _told(each: plan.Round, said: Said, found: Obtained) -> str:
    return (
        f"round {each.number}, steps {each.first + 1} to {each.last}: the student answered {said.rows} of "
        f"{len(each.rows)} rows in {said.mean_tokens:.1f} tokens on average, {said.empty} with nothing and {said.cut} "
        f"at full length; the teacher scored them, {found.bought_rows} rows bought and {found.reused_rows} found again"
    )


def _write(path: Path, value: dict[str, Any]) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(value, indent=1))
    os.replace(partial, path)
