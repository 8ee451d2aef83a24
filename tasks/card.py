"""The model card of a student: what it is, why it was made, what the checks said, and what it cost, in Markdown.

Written from the manifests of a retrain alone; prompts and answers are in none of them.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tasks import costs
from tasks.judge import table
from tasks.run import Run, read_json

CARD_FILE = "MODEL_CARD.md"
WEIGHTS = "*.safetensors"


def written(run: Run, student: Path) -> str:
    """Return the card of a retrain's student, of the stages that have ended so far; `student` is its checkpoint."""
    found = {name: manifest["result"] for name, manifest in run.manifests().items()}
    sections = (
        _head(run),
        "## What it is\n\n" + _pairs(_identity(run, student)),
        "## Why it was made\n\n" + _cause(run, found["watch"]),
        "## Verdict\n\n" + _verdict(found),
        "## Limits\n\n" + _list(_limits(run, found)),
        "## Cost\n\n" + _pairs(_spent(run, found)),
        "## Lineage\n\n" + _pairs(_lineage(run, found)),
    )
    return "\n\n".join(sections) + "\n"


def _head(run: Run) -> str:
    front = ("---", "library_name: transformers", "pipeline_tag: text-generation", "tags: [distillation]", "---", "")
    return "\n".join((*front, f"# {run.request.student}, retrain {run.request.retrain_id}"))


def _identity(run: Run, student: Path) -> Iterator[tuple[str, object]]:
    config, settings, before = read_json(student / "config.json"), run.request.settings, run.request.champion
    yield "model", f"{', '.join(config.get('architectures') or ['a causal LM'])}, made by distillation"
    weights = list(student.glob(WEIGHTS))
    yield "parameters", f"{sum(map(_parameters, weights)):,}"
    yield "size on disk", f"{sum(file.stat().st_size for file in weights) / 1e6:,.1f} MB of weights"
    yield "longest prompt", f"{settings['student.max_prompt_tokens']} tokens; longer ones lose their beginning"
    yield "longest answer", f"{settings['student.max_new_tokens']} tokens, chosen greedily"
    yield "teacher", f"SHA-256 {run.request.teacher}"
    yield "started from", f"champion version {before.version}" if before else f"the base model, {run.request.base}"
    yield "learned from", f"window {run.request.window}, {run.request.window_rows} rows, and replay where there was any"


def _parameters(file: Path) -> int:
    """Return how many numbers a safetensors file has, by its header."""
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
    return sum(_product(shape) for shape in shapes)


def _product(shape: Iterable[int]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result


def _cause(run: Run, watched: Mapping[str, Any]) -> str:
    asked = " It was asked for by hand (`--force`)." if run.request.force else ""
    drift = watched["drift"]
    if drift is None:
        return f"{_sentence(watched['reason'])}{asked}"
    against = f"{drift['rows']} held-out rows of {drift['window']} against {drift['reference_rows']} of "
    return f"{_sentence(watched['reason'])}{asked}\n\nCompared were {against}{drift['reference_window']}."


def _verdict(found: Mapping[str, Any]) -> str:
    judged, said = found["judge"], found.get("approval")
    told = f"**{judged['outcome']}**: {judged['reason']}."
    if said:
        note = f": {said['note']}" if said["note"] else ""
        told += _cell(f" {'Approved' if said['approved'] else 'Refused'} by {said['by']} at {said['at']}{note}.")
    if judged["harmed"]:
        told += f" Surely worse than before, if only by less than the margin: {', '.join(judged['harmed'])}."
    return f"{told}\n\n{checks(judged)}"


def checks(judged: Mapping[str, Any]) -> str:
    """Return a verdict's checks and budgets as a Markdown table, the worst first; of a first champion its scores."""
    columns = [
        column
        for column in ("slice", "metric", "rows", "champion", "challenger", "lower", "upper", "margin", "outcome")
        if any(column in row for row in table(judged))
    ]
    rows = [[_shown(row.get(column)) for column in columns] for row in table(judged)]
    return _table(columns, rows)


def _limits(run: Run, found: Mapping[str, Any]) -> Iterator[str]:
    judged, signals = found["judge"], found["signals"]
    yield "It was judged on held-out rows of the windows above, with greedy answers; elsewhere nothing is known of it."
    if judged.get("targets_by_teacher"):
        yield (
            f"{judged['targets_by_teacher']} rows had no label: there its answers were held against the teacher's, and "
            "what the teacher gets wrong is not seen."
        )
    yield from judged["left_out"]
    if errors := judged.get("teacher_errors"):
        rows = f"{errors['rows']:.0f} held-out rows that the champion answered otherwise than the teacher"
        yield f"Of {rows} it answers {errors['challenger']:.0%} as the teacher does; they were chosen because of that."
    if signals["truncated_prompts"]:
        yield f"{signals['truncated_prompts']} prompts that it learned from were cut to its longest prompt."
    kept_out = {name: n for name, n in signals["outcomes"].items() if name.startswith("quarantined") and n}
    if kept_out:
        yield (
            "Not learned: "
            + ", ".join(f"{n} rows {name.replace('_', ' by ', 1)}" for name, n in kept_out.items())
            + "."
        )
    if missed := found["train"]["rows"]["not_reached"]:
        yield f"{missed} rows of the mixture were in no step: {found['train']['not_reached_because']}."
    if run.request.notice:
        yield _sentence(run.request.notice)


def _spent(run: Run, found: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    said = [result["cost"] for result in found.values() if "cost" in result]
    if said:
        yield "teacher", costs.told(costs.total(said))
    for name, manifest in run.manifests().items():
        yield f"{name}", f"{manifest['seconds']:.1f} s"


def _lineage(run: Run, found: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    before = run.request.champion
    yield "retrain", run.request.retrain_id
    yield "weights, SHA-256", found["train"]["student_sha256"]
    yield "window, SHA-256", run.request.window_digest
    yield "champion before it", f"version {before.version}, retrain {before.retrain_id}" if before else "none"
    yield "windows learned from", ", ".join([*(before.trained if before else []), run.request.window])
    yield "windows profiled", ", ".join([*(before.profiled if before else []), run.request.profile_window])
    yield "code", run.manifests()["train"]["code_revision"]


def _pairs(pairs: Iterable[tuple[str, object]]) -> str:
    return _table(("", ""), pairs)


def _table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a Markdown table; what would end a cell is escaped."""
    head = [str(column) for column in columns]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _list(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {_cell(sentence)}" for sentence in sentences)


def _cell(value: object) -> str:
    return str(value).replace("|", r"\|").replace("\n", " ")


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4f}".rstrip("0").rstrip(".")
    return "" if value is None else str(value)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."
