"""Keeps every student that was ever trained, and which of them serves: champion, challenger, previous.

    registry = connect("sqlite:///out/mlflow.db", "out/mlartifacts", "student", timeout=10)
    run = registry.record(retrain_id, params=..., metrics=..., tags=..., artifacts=[report])
    version = registry.register(retrain_id, run, checkpoint, tags)      # alias challenger
    registry.promote(version.version, expected="3")                     # alias champion, written last

Everything is found again by the tag `retrain_id`: whatever was cut short is finished by calling it again.
Checkpoints, numbers and hashes go in; prompts never do.

A change of the champion is written down as one move before any alias is touched (deployments.journal): of two at once
one wins, on SQLite and on a server, and `recover` finishes what was cut short. On SQLite a file lock beside the
database keeps them apart besides; across machines the Prefect limit that tasks.ship takes does.
"""

import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from deployments import aliases, journal, runs
from deployments.connection import (
    absolute,
    database,
    explained,
    file_lock,
    lock_of,
    masked,
    mlflow_client,
    reach_database,
    reach_server,
)
from deployments.errors import Failure, InputError

PARAM_LENGTH = 6000  # MLflow cuts longer values without a word


@dataclass(frozen=True)
class Version:
    """One registered student: `version` is its number as text, `run_id` the MLflow run of its retrain."""

    name: str
    version: str
    run_id: str
    tags: dict[str, str]
    created: datetime


def opened(uri: str, student: str, timeout: float) -> "Registry":
    """Opens a registry to look at it; creates nothing.

    Raises InputError when there is no such database or no such student in it, Failure as `connect`.
    """
    address, lock = _reached(uri, student, timeout, create=False)
    client = mlflow_client(address)
    with explained(address, f"looking for student {student!r}"):
        known = {model.name: model for model in client.search_registered_models()}
        if student not in known:
            others = f"it has {', '.join(sorted(known))}" if known else "it has none at all"
            raise InputError(f"the registry {masked(address)} has no student {student!r}: {others}")
        experiment = client.get_experiment_by_name(student)
    found = "" if experiment is None else str(experiment.experiment_id)
    return Registry(client, address, student, found, lock, str(known[student].tags.get(journal.TAG, "")))


def connect(uri: str, artifacts: str, student: str, timeout: float) -> "Registry":
    """Opens the registry of a student and creates what is missing: database, experiment, registered model.

    `artifacts` is where a new experiment puts its files (a folder or URL); empty: the server's own place, or
    `mlartifacts` beside the SQLite file. Raises InputError for an address or a name that cannot be used and
    Failure, within `timeout` seconds, for a registry that cannot be reached. Importing mlflow takes 2.5 s,
    whichever part of it is asked for, and creating a SQLite store 4 s, once.
    """
    address, lock = _reached(uri, student, timeout, create=True)
    path = database(address)
    artifacts = artifacts or (str(path.parent / "mlartifacts") if path else "")
    client = mlflow_client(address)
    with explained(address, f"opening the experiment {student!r}"), lock():
        experiment = _experiment(client, student, artifacts)
        moves = journal.find_or_create(client, student, experiment, _or_exists)
    return Registry(client, address, student, experiment, lock, moves)


def _reached(uri: str, student: str, timeout: float, *, create: bool) -> tuple[str, runs.Lock]:
    """The absolute address of a registry that answers, and what keeps its writers apart."""
    address = absolute(uri)
    _plain("student", student)
    path = database(address)
    if path is None:
        reach_server(address, timeout)
        return address, nullcontext
    if not create and not path.is_file():
        raise InputError(f"there is no registry at {address}: give --uri, or --workspace; a retrain makes one")
    reach_database(path, timeout)
    beside = lock_of(path)
    return address, lambda: file_lock(beside)


@dataclass(frozen=True)
class Registry:
    """The runs and versions of one student; made by `connect`. A version is named by its number as text."""

    client: Any
    uri: str
    student: str
    experiment: str
    lock: runs.Lock
    promotions: str = ""  # id of the run that holds the moves

    def champion(self) -> Version | None:
        """The version that serves."""
        return self._aliased("champion")

    def challenger(self) -> Version | None:
        """The newest version that was registered and not promoted."""
        return self._aliased("challenger")

    def get(self, version: str) -> Version:
        """A version as it is registered now."""
        with explained(self.uri, f"reading version {version} of {self.student!r}"):
            return self._version(version)

    def previous(self) -> Version | None:
        """The version that a rollback puts back."""
        return self._aliased("previous")

    def record(
        self,
        retrain_id: str,
        *,
        params: Mapping[str, object],
        metrics: Iterable[runs.Metric],
        tags: Mapping[str, str],
        artifacts: Sequence[Path],
    ) -> str:
        """Writes one finished MLflow run for a retrain and returns its id; a second call completes it.

        Files and folders in `artifacts` are copied to the run. Raises InputError for a parameter of more than
        6000 characters.
        """
        _plain("retrain_id", retrain_id)
        texts = {key: str(value) for key, value in params.items()}
        for key, text in texts.items():
            if len(text) > PARAM_LENGTH:
                raise InputError(
                    f"parameter {key} of retrain {retrain_id} has {len(text)} characters, MLflow keeps "
                    f"{PARAM_LENGTH}: hand it over as a file among the artifacts"
                )
        with explained(self.uri, f"recording retrain {retrain_id}"):
            run = runs.find_or_create(self.client, self.experiment, retrain_id, self.lock)
            if run.info.status != "FINISHED":
                runs.fill(self.client, run.info.run_id, texts, metrics, tags, artifacts)
            return str(run.info.run_id)

    def add(self, run_id: str, metrics: Iterable[runs.Metric]) -> None:
        """Adds metrics to the run of a retrain, which may be finished; a second call completes it."""
        with explained(self.uri, f"adding to run {run_id}"):
            runs.measure(self.client, run_id, metrics)

    def register(self, retrain_id: str, run_id: str, checkpoint: Path, tags: Mapping[str, str]) -> Version:
        """Stores a checkpoint folder as a new version, the challenger; a second call completes it.

        The alias is left alone when the version was promoted in the meantime or a newer challenger has it.
        """
        _plain("retrain_id", retrain_id)
        if not checkpoint.is_dir() or not any(checkpoint.iterdir()):
            raise InputError(f"checkpoint {checkpoint} is no folder with files: export the student there first")
        with explained(self.uri, f"registering the student of retrain {retrain_id}"):
            version = self._version_of(retrain_id)
            if version is None:
                model = runs.store(self.client, self.experiment, retrain_id, run_id, checkpoint, self.lock)
                with self.lock():
                    version = self._version_of(retrain_id) or self._create(retrain_id, run_id, model, tags)
            with self.lock():
                aliases.challenge(self.client, self.student, version)
            return self._version(version)

    def fetch(self, version: str, cache: Path) -> Path:
        """The folder of a version's checkpoint: the store's own if it is on this machine, else a copy in `cache`."""
        from mlflow.artifacts import download_artifacts
        from mlflow.utils.file_utils import local_file_uri_to_path

        with explained(self.uri, f"fetching version {version}"):
            source = str(self.client.get_model_version(self.student, version).source)
            model = source.removeprefix("models:/")
            location = self.client.get_logged_model(model).artifact_location
            if urlsplit(location).scheme in ("", "file"):
                folder = Path(local_file_uri_to_path(location))
                if not folder.is_dir():
                    raise Failure(
                        f"the checkpoint of version {version} of {self.student!r} is gone from {folder}: put it back "
                        "from a backup, or promote another version"
                    )
                return folder
            ready = cache / model
            if not ready.is_dir():
                cache.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(dir=cache, prefix=".unfinished-") as unfinished:
                    got = download_artifacts(artifact_uri=location, dst_path=unfinished, tracking_uri=self.uri)
                    _move(Path(got), ready)
            return ready

    def promote(self, version: str, expected: str | None) -> None:
        """Makes a version the champion, if the champion still is `expected` (None: there is none yet).

        Does nothing when it is the champion already; a call that was cut short is finished by the next one.
        Raises Failure, naming the version that won, when somebody else changed the champion.
        """
        with explained(self.uri, f"promoting version {version}"), self.lock():
            aliases.promote(self.client, self.student, self.promotions, version, expected)

    def rollback(self, reason: str, expected: str | None = None) -> tuple[str, str]:
        """Makes the previous version the champion again; returns (version taken out, version put back).

        `expected`: only if this is the champion now, else Failure. A call that was cut short is finished by the next
        one. One that ended well must not be repeated: it would go back one more. Raises InputError when there is
        nothing to roll back to.
        """
        with explained(self.uri, "rolling back"), self.lock():
            return aliases.rollback(self.client, self.student, self.promotions, reason, expected)

    def rolls_back_to(self) -> Version | None:
        """The version that a rollback would put back now, an unfinished one's own if there is one."""
        with explained(self.uri, "reading its moves"):
            begun = journal.unfinished(self.client, self.promotions)
            if begun and begun.what == "rollback":
                return self._version(begun.to)
            if begun and begun.previous_before and self.champion_is(begun.before):
                return self._version(begun.previous_before)  # an unfinished promotion is undone first
        return self.previous()

    def champion_is(self, version: str | None) -> bool:
        """Says whether a version serves; None: whether none does."""
        champion = self.champion()
        return version == (champion.version if champion else None)

    def recover(self) -> str:
        """Finishes, or undoes, the promotion or rollback that was cut short; returns what was done, "" for nothing."""
        with explained(self.uri, "finishing what was cut short"), self.lock():
            return aliases.recover(self.client, self.student, self.promotions)

    def moves(self) -> list[journal.Move]:
        """All promotions and rollbacks, in order."""
        with explained(self.uri, "reading its moves"):
            return journal.read(self.client, self.promotions)

    def aliased(self) -> dict[str, str]:
        """Alias -> version."""
        with explained(self.uri, "reading its aliases"):
            return aliases.read(self.client, self.student)

    def versions(self) -> list[Version]:
        """All versions, the oldest first."""
        with explained(self.uri, f"listing the versions of {self.student!r}"):
            found: list[Any] = []
            token: str | None = ""
            while token is not None:
                page = self.client.search_model_versions(f"name = '{self.student}'", page_token=token or None)
                found, token = [*found, *page], page.token or None
            return sorted(map(self._of, found), key=lambda version: int(version.version))

    def _aliased(self, alias: str) -> Version | None:
        with explained(self.uri, f"reading the alias {alias}"):
            version = aliases.read(self.client, self.student).get(alias)
            return None if version is None else self._version(version)

    def _version(self, version: str) -> Version:
        return self._of(self.client.get_model_version(self.student, version))

    def _of(self, found: Any) -> Version:
        created = datetime.fromtimestamp(found.creation_timestamp / 1000, UTC)
        return Version(self.student, str(found.version), str(found.run_id), dict(found.tags), created)

    def _version_of(self, retrain_id: str) -> str | None:
        where = f"name = '{self.student}' and tags.retrain_id = '{retrain_id}'"
        found = self.client.search_model_versions(where, max_results=1)
        return str(found[0].version) if found else None

    def _create(self, retrain_id: str, run_id: str, model: str, tags: Mapping[str, str]) -> str:
        with _global_address(self.uri):
            version = self.client.create_model_version(
                self.student,
                source=f"models:/{model}",
                run_id=run_id,
                model_id=model,
                tags={**tags, "retrain_id": retrain_id},
            )
        return str(version.version)


@contextmanager
def _global_address(uri: str) -> Iterator[None]:
    """Sets MLflow's process-wide tracking address for a moment.

    `create_model_version` looks a `models:/` source up there, whatever address its client has.
    """
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")  # set_tracking_uri writes it as well
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)


def _experiment(client: Any, student: str, artifacts: str) -> str:
    """The id of the student's experiment, created where it is missing."""
    _or_exists(lambda: client.create_experiment(student, artifact_location=artifacts or None))
    experiment = client.get_experiment_by_name(student)
    if experiment.lifecycle_stage != "active":
        raise Failure(
            f"experiment {student!r} was deleted in the registry: restore it with "
            f"`mlflow experiments restore -x {experiment.experiment_id}`"
        )
    return str(experiment.experiment_id)


def _or_exists(create: Callable[[], object]) -> None:
    """Creates something, unless it is there already."""
    from mlflow.exceptions import MlflowException

    try:
        create()
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _move(source: Path, target: Path) -> None:
    """Renames a whole folder; another process that was faster is as good."""
    try:
        source.rename(target)
    except OSError:
        if not target.is_dir():
            raise


def _plain(what: str, name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise InputError(
            f"{what} = {name!r}: use letters, digits, '.', '_' and '-' only; it stands in searches and paths"
        )
