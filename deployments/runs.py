"""Writes what a retrain did into MLflow: one run with its numbers, one logged model with its checkpoint.

Both are found again by the tag `retrain_id`, so that a second call goes on where the first was cut short.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from deployments.errors import Failure

METRICS_A_CALL = 1000  # limits of MLflow's log-batch call
PARAMS_A_CALL = 100

Lock = Callable[[], AbstractContextManager[None]]
Metric = tuple[str, float, int, int]  # key, value, step, time [ms since 1970]


def find_or_create(client: Any, experiment: str, retrain_id: str, lock: Lock) -> Any:
    """The MLflow run of a retrain."""
    with lock():
        found = client.search_runs([experiment], f"tags.retrain_id = '{retrain_id}'", max_results=1)
        if found:
            return found[0]
        return client.create_run(experiment, tags={"retrain_id": retrain_id}, run_name=retrain_id)


def fill(
    client: Any,
    run_id: str,
    params: Mapping[str, str],
    metrics: Iterable[Metric],
    tags: Mapping[str, str],
    artifacts: Sequence[Path],
) -> None:
    """Writes everything and marks the run as finished; what is there already is not stored twice.

    (The primary key of a metric in MLflow's database is all of it; parameters, tags and files have one value each.)
    """
    from mlflow.entities import Param, RunTag

    measure(client, run_id, metrics)
    for batch in _batches((Param(key, text) for key, text in params.items()), PARAMS_A_CALL):
        client.log_batch(run_id, params=batch)
    for batch in _batches((RunTag(key, str(value)) for key, value in tags.items()), PARAMS_A_CALL):
        client.log_batch(run_id, tags=batch)
    for artifact in artifacts:
        if artifact.is_dir():
            client.log_artifacts(run_id, str(artifact), artifact.name)
        else:
            client.log_artifact(run_id, str(artifact))
    client.set_terminated(run_id, "FINISHED")


def measure(client: Any, run_id: str, metrics: Iterable[Metric]) -> None:
    """Adds metrics to a run; what is there already is not stored twice."""
    from mlflow.entities import Metric as Point

    for batch in _batches((Point(k, v, when, step) for k, v, step, when in metrics), METRICS_A_CALL):
        client.log_batch(run_id, metrics=batch)


def store(client: Any, experiment: str, retrain_id: str, run_id: str, checkpoint: Path, lock: Lock) -> str:
    """The id of the logged model that holds a retrain's checkpoint, uploaded unless that was done before."""
    with lock():
        found = client.search_logged_models([experiment], f"tags.retrain_id = '{retrain_id}'", max_results=1)
        model = found[0] if found else None
        if model is None:
            model = client.create_logged_model(
                experiment, name="student", source_run_id=run_id, tags={"retrain_id": retrain_id}
            )
    if str(model.status) != "READY":
        client.log_model_artifacts(model.model_id, str(checkpoint))
        client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)


def fetched(client: Any, student: str, version: str, cache: Path, uri: str, *, fresh: bool) -> Path:
    """The folder of a version's checkpoint: the store's own if it is on this machine, else a copy in `cache`.

    With `fresh` the copy is made anew, so that it is what the store has now.
    """
    from mlflow.artifacts import download_artifacts
    from mlflow.utils.file_utils import local_file_uri_to_path

    model = str(client.get_model_version(student, version).source).removeprefix("models:/")
    location = client.get_logged_model(model).artifact_location
    if urlsplit(location).scheme in ("", "file"):
        folder = Path(local_file_uri_to_path(location))
        if not folder.is_dir():
            raise Failure(
                f"the checkpoint of version {version} of {student!r} is gone from {folder}: put it back "
                "from a backup, or promote another version"
            )
        return folder
    ready = cache / model
    if fresh or not ready.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=cache, prefix=".unfinished-") as unfinished,
            tempfile.TemporaryDirectory(dir=cache, prefix=".replaced-") as replaced,
        ):
            got = download_artifacts(artifact_uri=location, dst_path=unfinished, tracking_uri=uri)
            with suppress(FileNotFoundError):  # there was none, or another process has just taken it away
                ready.rename(Path(replaced, ready.name))
            _move(Path(got), ready)
    return ready


def _move(source: Path, target: Path) -> None:
    """Renames a whole folder; another process that was faster is as good."""
    try:
        source.rename(target)
    except OSError:
        if not target.is_dir():
            raise


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch
