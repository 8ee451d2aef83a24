"""Reaches an MLflow store, and says within seconds when there is none.

Two kinds of address are taken: `sqlite:///FILE` and `http(s)://HOST:PORT` (an `mlflow server`). A new SQLite
store is built in a file beside its place and moved there when it is whole: MLflow's migration runs outside a
transaction, so that a process killed in it leaves a database that never opens again, and two at once crash.
"""

import fcntl
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from deployments.errors import Failure, InputError

LOCK_WAIT = 300.0  # [s]; whoever holds the lock creates the store (15 s on an idle machine) or moves aliases (0.1 s)
BUSY = (429, 502, 503, 504)  # what a server, or a proxy before it, answers for a moment; MLflow's client asks again too


def masked(text: str) -> str:
    """Text without the credentials of any URL in it."""
    return re.sub(r"://[^/\s]*@", "://***@", text)


def absolute(uri: str) -> str:
    """The address, a SQLite path made absolute; InputError for one that is neither SQLite nor http(s)."""
    scheme = uri.partition(":")[0]
    if scheme in ("http", "https") and urlsplit(uri).hostname:
        return uri.rstrip("/")
    path = uri.removeprefix("sqlite:///")
    if path == uri or path in ("", ":memory:") or "?" in path:
        raise InputError(
            f"registry.uri = {masked(uri)!r} is not an address of a registry: give sqlite:///FILE or the "
            "http(s)://HOST:PORT of an `mlflow server` (which can itself stand on Postgres or MySQL)"
        )
    return f"sqlite:///{Path(path).absolute()}"


def database(uri: str) -> Path | None:
    """The file of a SQLite address, None for a server."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:") else None


def mlflow_client(uri: str) -> Any:
    """An MlflowClient of this address, with telemetry and the printing of run links off."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read while mlflow is imported
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def explained(uri: str, doing: str) -> Iterator[None]:
    """Turns what MLflow, its database or its files raise into a Failure with the registry and the step."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise Failure(
            masked(f"the registry {uri} failed while {doing}: {reason}; mend that, then start the same again")
        ) from (error if masked(uri) == uri else None)  # a cause would show the credentials of the address


@contextmanager
def file_lock(path: Path, wait: float = LOCK_WAIT) -> Iterator[None]:
    """Holds an exclusive lock on a file (created if need be); the system frees it when the process dies.

    Raises Failure after `wait` seconds.
    """
    deadline = time.monotonic() + wait
    with path.open("a") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Failure(
                        f"another process has held {path} for {wait:g} s: find it (`fuser {path}`), "
                        "let it finish or end it"
                    ) from None
                time.sleep(0.02)
        yield


def lock_of(path: Path) -> Path:
    """The lock file of a SQLite database: beside it."""
    return path.with_name(path.name + ".lock")


def reach_database(path: Path, timeout: float) -> None:
    """Makes sure that the SQLite store exists, whole and writable; raises Failure."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(lock_of(path)):
            if not path.exists() or path.stat().st_size == 0:
                _create(path)
        connection = sqlite3.connect(path, timeout=timeout)
        try:
            connection.execute("BEGIN IMMEDIATE")  # fails on what is no database, cannot be written or stays locked
            connection.rollback()
        finally:
            connection.close()
    except (OSError, sqlite3.Error) as error:
        raise Failure(
            f"the registry sqlite:///{path} cannot be opened ({type(error).__name__}: {error}): set "
            "registry.uri to a file in a folder that can be written, or look at what lies there"
        ) from error


def _create(path: Path) -> None:
    """Builds the schema beside `path` and moves it there; the caller holds the lock."""
    unfinished = path.with_name(path.name + ".new")
    for leftover in (unfinished, unfinished.with_name(unfinished.name + "-journal")):
        leftover.unlink(missing_ok=True)
    client = mlflow_client(f"sqlite:///{unfinished}")
    with explained(f"sqlite:///{path}", "creating its tables"):
        client.search_experiments(max_results=1)
        client.search_registered_models(max_results=1)
    unfinished.replace(path)


def reach_server(uri: str, timeout: float) -> None:
    """Asks an MLflow server whether it is well, while it is busy again; raises Failure within `timeout` seconds.

    MLflow's own client would try for minutes. The question is put in a thread because no timeout of an HTTP
    client covers the resolution of the host's name.
    """
    complaints: list[str] = []
    asking = threading.Thread(target=_ask, args=(uri, timeout, complaints), daemon=True)
    asking.start()
    asking.join(timeout)
    complaint = complaints[-1] if complaints else f"no answer within registry.timeout = {timeout:g} s"
    if complaint:
        raise Failure(
            masked(
                f"the registry {uri} cannot be reached ({complaint}): start it (`mlflow server`), or set "
                "registry.uri to its address, or to nothing for a SQLite file in the workspace"
            )
        )


def _ask(uri: str, timeout: float, complaints: list[str]) -> None:
    """Adds what is wrong with the server to `complaints`, "" for nothing; the last one counts."""
    import httpx

    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            answer = httpx.get(f"{uri}/health", timeout=timeout, follow_redirects=True)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            complaints.append(f"{type(error).__name__}: {error}")
            return
        complaints.append("" if answer.is_success else f"GET {uri}/health was answered with {answer.status_code}")
        if answer.status_code not in BUSY:
            return
        time.sleep(0.1)


@contextmanager
def global_address(uri: str) -> Iterator[None]:
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


def experiment_of(client: Any, student: str, artifacts: str) -> str:
    """The id of the student's experiment, created where it is missing."""
    or_exists(lambda: client.create_experiment(student, artifact_location=artifacts or None))
    experiment = client.get_experiment_by_name(student)
    if experiment.lifecycle_stage != "active":
        raise Failure(
            f"experiment {student!r} was deleted in the registry: restore it with "
            f"`mlflow experiments restore -x {experiment.experiment_id}`"
        )
    return str(experiment.experiment_id)


def or_exists(create: Callable[[], object]) -> None:
    """Creates something, unless it is there already."""
    from mlflow.exceptions import MlflowException

    try:
        create()
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
