"""Tasks of lm-eval (EleutherAI's language model evaluation harness) as further scores of a checkpoint, row by row.

    scores(["my_task.yaml"], load("student"))  ->  {"my_task acc": array of (documents,)}

A task is a YAML file with data beside it, or the name of one that is installed. Nothing is downloaded: data sets and
metrics are those that are on this machine, unless HF_DATASETS_OFFLINE and HF_EVALUATE_OFFLINE are set to 0.
lm-eval is an extra: pip install "redistill[lm-eval]".
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.errors import InputError
from distill.loaded import Loaded, load

PLACES = ("metadata", "task", "dataset_kwargs")  # of a task's configuration: what it is called, where its data lies


def digest(tasks: Sequence[str]) -> str:
    """Return SHA-256 (hex) of what the tasks ask: their configuration and documents.

    Raises InputError when lm-eval is not installed, or a task or its data cannot be read; no model is needed for that.
    """
    total = hashlib.sha256()
    for name, task in sorted(_tasks(tasks).items()):
        config = {key: value for key, value in task.dump_config().items() if key not in PLACES}
        documents = list(_documents(name, task))
        total.update(json.dumps([name, config, documents], sort_keys=True, default=str).encode())
    return total.hexdigest()


def scores(
    tasks: Sequence[str],
    checkpoint: Path | str | Loaded,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Return each task's metrics of which higher is better, as "TASK METRIC" -> one number a document, in their order.

    Prompts go through the checkpoint's own chat template, as all prompts here do. Raises InputError as `digest` does,
    and for a task without such a metric.
    """
    loaded, found = load(checkpoint), dict[str, NDArray[np.float64]]()
    named = _tasks(tasks)
    for number, (name, task) in enumerate(named.items(), start=1):
        found |= _of_task(name, task, loaded, batch_size, _manager(installed=False))
        if progress:
            progress(number, len(named))
    return found


def _of_task(name: str, task: Any, loaded: Loaded, batch_size: int, manager: Any) -> dict[str, NDArray[np.float64]]:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=batch_size)
    said = simple_evaluate(
        model=model, tasks=[task], apply_chat_template=True, bootstrap_iters=0, log_samples=True, task_manager=manager
    )
    higher, samples = said["higher_is_better"][name], said["samples"][name]
    found: dict[str, list[tuple[int, float]]] = {}
    filters = {sample["filter"] for sample in samples}
    for sample in samples:
        for metric in sample["metrics"]:
            if higher.get(metric) and isinstance(sample[metric], int | float | np.number):
                shown = f"{name} {metric}" + (f" {sample['filter']}" if len(filters) > 1 else "")
                found.setdefault(shown, []).append((sample["doc_id"], float(sample[metric])))
    if not found:
        raise InputError(
            f"judging.lm_eval: task {name!r} has no metric of single documents of which higher is better (it has "
            f"{', '.join(sorted(higher)) or 'none'}): add one to its metric_list, such as acc or exact_match"
        )
    return {shown: np.array([value for _, value in sorted(values)]) for shown, values in found.items()}


def _tasks(names: Sequence[str]) -> dict[str, Any]:
    """Return the tasks by name, with their data read."""
    found: dict[str, Any] = {}
    for name in names:
        is_file = Path(name).is_file()
        manager = _manager(installed=not is_file)
        try:
            own = manager.load(str(Path(name).absolute()) if is_file else name)["tasks"]
        except Exception as error:  # of any library that reads a data set
            reason = " ".join(str(error).split())
            raise InputError(
                f"judging.lm_eval: task {name!r} cannot be read ({type(error).__name__}: {reason}): give a YAML file "
                "with its data on this machine, or the name of an installed task whose data is"
            ) from error
        if twice := sorted(set(own) & set(found)):
            raise InputError(f"judging.lm_eval: task {twice[0]!r} is there twice: name it once")
        found |= own
    return found


@cache
def _manager(*, installed: bool) -> Any:
    """Return what reads tasks. With those that are installed it takes half a minute: they are some 26,000 files."""
    for variable in ("HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE"):
        os.environ.setdefault(variable, "1")
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise InputError(
            f"judging.lm_eval names tasks, but lm-eval is not here ({error}): install it with "
            'pip install "redistill[lm-eval]", or name no tasks'
        ) from error
    return TaskManager(include_defaults=installed)


def _documents(name: str, task: Any) -> Any:
    for there, documents in (
        (task.has_test_docs, task.test_docs),
        (task.has_validation_docs, task.validation_docs),
    ):
        if there():
            return documents()
    raise InputError(f"judging.lm_eval: task {name!r} has neither a test_split nor a validation_split to be judged by")
