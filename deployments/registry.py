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

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deployments import aliases, journal, runs, text
from deployments.connection import (
    absolute,
    database,
    experiment_of,
    explained,
    file_lock,
    global_address,
    lock_of,
    masked,
    mlflow_client,
    or_exists,
    reach_database,
    reach_server,
)
from deployments.errors import InputError

PARAM_LENGTH = 6000  # MLflow cuts longer values without a word
DESCRIPTION_LENGTH = 5000  # of a version; Postgres takes no longer one
REASON_LENGTH = 500  # of a rollback: it stands in such a value, escaped


@dataclass(frozen=True)
class Version:
    """One registered student: `version` is its number as text, `run_id` the MLflow run of its retrain."""

    name: str
    version: str
    run_id: str
    tags: dict[str, str]
    created: datetime


def opened(uri: str, student: str, timeout: float) -> "Registry":
    """Opens a registry to look at it; creates nothing. `student` may be empty where the registry has but one.

    Raises InputError when there is no such database or no such student in it, Failure as `connect`.
    """
    address, lock = _reached(uri, timeout, create=False)
    client = mlflow_client(address)
    with explained(address, "looking for its students"):
        known = {model.name: model for model in client.search_registered_models(max_results=1000)}
        student = student or (next(iter(known)) if len(known) == 1 else "")
        if student not in known:
            has = f"it has {', '.join(sorted(known))}" if known else "it has none at all"
            wanted = f"no student {student!r}" if student else "not one student only"
            raise InputError(f"the registry {masked(address)} has {wanted}, {has}: choose by --student")
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
    _plain("student", student)
    address, lock = _reached(uri, timeout, create=True)
    path = database(address)
    artifacts = artifacts or (str(path.parent / "mlartifacts") if path else "")
    client = mlflow_client(address)
    with explained(address, f"opening the experiment {student!r}"), lock():
        experiment = experiment_of(client, student, artifacts)
        moves = journal.find_or_create(client, student, experiment, or_exists)
    return Registry(client, address, student, experiment, lock, moves)


def _reached(uri: str, timeout: float, *, create: bool) -> tuple[str, runs.Lock]:
    """The absolute address of a registry that answers, and what keeps its writers apart."""
    address = absolute(uri)
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
        for key, value in texts.items():
            if len(value) > PARAM_LENGTH:
                raise InputError(
                    f"parameter {key} of retrain {retrain_id} has {len(value)} characters, MLflow keeps "
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

    def register(
        self, retrain_id: str, run_id: str, checkpoint: Path, tags: Mapping[str, str], description: str = ""
    ) -> Version:
        """Stores a checkpoint folder as a new version, the challenger; a second call completes it.

        `description` is Markdown; of a longer one than a registry keeps (5000 characters) its beginning is kept.
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
                    version = self._version_of(retrain_id) or self._create(retrain_id, run_id, model, tags, description)
            with self.lock():
                aliases.challenge(self.client, self.student, version)
            return self._version(version)

    def tag(self, version: str, tags: Mapping[str, str]) -> None:
        """Adds tags to a version."""
        with explained(self.uri, f"tagging version {version}"):
            for key, value in tags.items():
                self.client.set_model_version_tag(self.student, version, key, value)

    def fetch(self, version: str, cache: Path, *, fresh: bool = True) -> Path:
        """The folder of a version's checkpoint: the store's own if it is on this machine, else a copy in `cache`.

        The copy is made anew, as what is verified must be what the store has now; without `fresh` one that is there
        will do.
        """
        with explained(self.uri, f"fetching version {version}"):
            return runs.fetched(self.client, self.student, version, cache, self.uri, fresh=fresh)

    def promote(self, version: str, expected: str | None) -> None:
        """Makes a version the champion, if the champion still is `expected` (None: there is none yet).

        Does nothing when it is the champion already; a call that was cut short is finished by the next one.
        Raises Failure, naming the version that won, when somebody else changed the champion.
        """
        with explained(self.uri, f"promoting version {version}"), self.lock():
            aliases.promote(self.client, self.student, self.promotions, version, expected)

    def rollback(self, reason: str, expected: str | None = None, target: str | None = None) -> tuple[str, str]:
        """Makes the previous version the champion again; returns (version taken out, version put back).

        `expected`, `target`: only if this is the champion now, and only if this is put back, else Failure. A call that
        was cut short is finished by the next one. One that ended well must not be repeated: it would go back one
        more. Raises InputError when there is nothing to roll back to.
        """
        if len(reason) > REASON_LENGTH:
            raise InputError(f"the reason has {len(reason)} characters, {REASON_LENGTH} are kept: say it in fewer")
        if wrong := text.fault(reason):  # found out later, it would be in the way of every later move
            raise InputError(f"the reason {wrong}: no registry keeps that, say it otherwise")
        with explained(self.uri, "rolling back"), self.lock():
            return aliases.rollback(self.client, self.student, self.promotions, reason, expected, target)

    def rolls_back_to(self) -> Version | None:
        """The version that a rollback would put back now: an unfinished one's own, else `previous`."""
        with explained(self.uri, "reading its moves"):
            begun, now = journal.unfinished(self.client, self.promotions), self.aliased()
            if begun and begun.what == "rollback":
                return self._version(begun.to)
            if begun and begun.before == now.get("champion"):  # a promotion that does not serve yet: it is undone first
                return None if begun.previous_before is None else self._version(begun.previous_before)
        return self.previous()

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

    def _create(self, retrain_id: str, run_id: str, model: str, tags: Mapping[str, str], description: str) -> str:
        with global_address(self.uri):
            version = self.client.create_model_version(
                self.student,
                source=f"models:/{model}",
                run_id=run_id,
                model_id=model,
                tags={**tags, "retrain_id": retrain_id},
                description=_shortened(description),
            )
        return str(version.version)


def _shortened(text: str) -> str:
    if len(text) <= DESCRIPTION_LENGTH:
        return text
    rest = "\n\n(The whole is among the files of the run.)\n"
    return text[: DESCRIPTION_LENGTH - len(rest)].rpartition("\n")[0] + rest


def _plain(what: str, name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise InputError(
            f"{what} = {name!r}: use letters, digits, '.', '_' and '-' only; it stands in searches and paths"
        )


if __name__ == "__main__":
    from deployments.registry_command import main

    sys.exit(main())
