"""The moves of a student: which version took the place of which, each written once and before any alias is moved.

MLflow has no transaction and no compare-and-set but one: a parameter of a run that has a value keeps it. So the moves
of a student are the numbered parameters of one run, `promotions`. Of two that are written at once the database keeps
one, on SQLite and on a server with MySQL or Postgres alike, and the other is told. A move that is written down says all
that is to be written, so that whoever finds it unfinished can carry it out.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import uuid4

from deployments.errors import Failure

TAG = "promotions"  # of the registered model: the id of the run that holds its moves
PARAM = "move/"


@dataclass(frozen=True)
class Move:
    """One change of the champion; versions as text, None for none."""

    number: int
    what: Literal["promotion", "rollback"]
    before: str | None  # the champion that is replaced
    to: str
    previous: str | None  # what the alias shall be
    previous_before: str | None  # what it was: for undoing, as the next two
    challenger_before: str | None
    replaced_before: str | None  # tag of `to`
    reason: str = ""
    at: str = field(default_factory=lambda: now())
    token: str = field(default_factory=lambda: uuid4().hex)  # no two moves are the same text
    undone: bool = False
    done: bool = False

    def __str__(self) -> str:
        """As it is told to people."""
        over = "the first champion" if self.before is None else f"in place of version {self.before}"
        return f"{self.what} of version {self.to}, {over}, of {self.at}"


def find_or_create(client: Any, student: str, experiment: str, exists: Callable[[Callable[[], object]], None]) -> str:
    """The id of the run that holds a student's moves; creates the registered model with it.

    The registered model is created with the tag, in one write: of two first starts at once one run is taken.
    """
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_registered_model(student).tags.get(TAG)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        found = None
    if found:
        return str(found)
    run = str(client.create_run(experiment, run_name=TAG).info.run_id)
    client.set_terminated(run, "FINISHED")  # parameters are taken none the less
    exists(lambda: client.create_registered_model(student, tags={TAG: run}))
    found = client.get_registered_model(student).tags.get(TAG)
    if not found:  # a registry from before there were moves
        client.set_registered_model_tag(student, TAG, run)
        found = client.get_registered_model(student).tags[TAG]
    if found != run:
        client.delete_run(run)
    return str(found)


def read(client: Any, journal: str) -> list[Move]:
    """All moves, in order; none for a registry without a journal. Raises Failure when somebody deleted them."""
    if not journal:
        return []
    params = _params(client, journal)
    found = []
    for key, text in params.items():
        if key.startswith(PARAM) and key.count("/") == 1:
            undone = params.get(f"{key}/decided") == "undone"
            found.append(Move(**json.loads(text), undone=undone, done=f"{key}/done" in params))
    return sorted(found, key=lambda move: move.number)


def unfinished(client: Any, journal: str) -> Move | None:
    """The last move, if it was not carried out to its end."""
    moves = read(client, journal)
    return moves[-1] if moves and not moves[-1].done else None


def claim(client: Any, journal: str, move: Move) -> bool:
    """Writes a move down, which decides it; False when another one has its number."""
    said = {key: value for key, value in asdict(move).items() if key not in ("undone", "done")}
    text = json.dumps(said, ensure_ascii=False)  # escaped, a reason of emoji would be longer than MLflow keeps
    _log_once(client, journal, f"{PARAM}{move.number:04d}", text)
    found = [each for each in read(client, journal) if each.number == move.number]
    return bool(found) and found[0].token == move.token


def decide(client: Any, journal: str, move: Move, end: Literal["kept", "undone"]) -> bool:
    """Writes down that a move is kept, or that it shall be undone; says whether it is so: who is first decides."""
    key = f"{PARAM}{move.number:04d}/decided"
    _log_once(client, journal, key, end)
    return _params(client, journal)[key] == end


def finish(client: Any, journal: str, move: Move) -> None:
    """Writes down that all of a move is carried out; once is enough."""
    _log_once(client, journal, f"{PARAM}{move.number:04d}/done", now())


def _params(client: Any, journal: str) -> dict[str, str]:
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(journal)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise Failure(
            f"the MLflow run {journal} ({TAG!r}), in which every change of the champion is written down, is gone for "
            f"good: put it back from a backup of the registry, or delete the tag {TAG!r} of the registered model and "
            "start again, which begins a new record; the champion stays"
        ) from error
    if run.info.lifecycle_stage == "deleted":
        raise Failure(
            f"the MLflow run {journal} ({TAG!r}), in which every change of the champion is written down, was deleted: "
            f"restore it with `mlflow runs restore --run-id {journal}`, MLFLOW_TRACKING_URI being this registry"
        )
    return dict(run.data.params)


def _log_once(client: Any, journal: str, key: str, text: str) -> None:
    """Writes a parameter, unless it has a value already, which it keeps."""
    from mlflow.exceptions import MlflowException

    try:
        client.log_param(journal, key, text)
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise


def now() -> str:
    """The time as it stands in moves and tags: UTC, seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")
