"""Approval: where settings ask for it, or the checks were inconclusive, a person says whether a challenger is promoted.

runs/<retrain_id>/waiting.json    which flow run waits for an answer, and until when; gone when it waits no more
runs/<retrain_id>/approval/       the answer: who gave it, when, and on which verdict

With a Prefect server the flow run pauses and the answer is its input in the UI; `give` is the same at a prompt, with
a server or without.
"""

import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

from prefect.exceptions import FlowPauseTimeout, NotPausedError, ObjectNotFound
from prefect.flow_runs import pause_flow_run, resume_flow_run
from prefect.input import RunInput
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from pydantic import Field, ValidationError, field_validator

from deployments import text
from deployments.errors import Failure, InputError, Spoiled
from deployments.registry import Registry
from deployments.settings import PromotionSettings
from tasks import card, plan
from tasks.run import Run, read_json, run_stage, write_json

Said = Literal["approved", "refused", "nothing"]

STAGE = "approval"
WAITING = "waiting.json"
POLL = 1.0  # between two looks at whether a flow run takes an answer [s]
PATIENCE = 30.0  # with one that waits and does not take it [s]


class Answer(RunInput):
    """What the form in Prefect's UI asks for."""

    approve: bool = Field(description="promote this challenger")
    by: str = Field(min_length=1, max_length=200, description="who says so, for the registry")
    note: str = Field("", max_length=1000, description="why, for the registry")

    @field_validator("by", "note")
    @classmethod
    def _can_be_kept(cls, given: str) -> str:
        if wrong := text.fault(given):
            raise ValueError(wrong)
        return given


def require(retrain_id: str, runs: Path) -> None:
    """Raise InputError, with those that wait for approval, when there is no such retrain."""
    if not (runs / retrain_id / "request.json").is_file():
        held = ", ".join(waiting(runs)[:5]) or "none"
        raise InputError(f"there is no retrain {retrain_id!r} in {str(runs)!r}; those that wait for approval: {held}")


def asked_before(retrain_id: str, registry: Registry, runs: Path, changing: dict[str, Any]) -> Run:
    """Return the run of an earlier retrain, for its challenger to be approved.

    Raises InputError when there is no such retrain, or its champion or its settings are not those of today.
    """
    require(retrain_id, runs)
    run = plan.open_run(runs / retrain_id)
    base, serving = run.request.champion, registry.champion()
    done, own = run.result(), serving is not None and serving.tags.get("retrain_id") == retrain_id
    replaced = (base and base.version) != (serving and serving.version) and not own  # own: killed after its promotion
    if replaced and (done is None or done["outcome"] == "held"):
        raise InputError(
            f"retrain {retrain_id} was judged against {f'version {base.version}' if base else 'no champion'}, the "
            f"champion now is {f'version {serving.version}' if serving else 'none'}: --again judges against that one"
        )
    asked = run.request.settings
    if differing := sorted(key for key in {*asked, *changing} if asked.get(key) != changing.get(key)):
        raise InputError(
            f"retrain {retrain_id} was made with other settings than these ({', '.join(differing[:3])}): give its own"
        )
    return run


def by_hand(run: Run, settings: PromotionSettings) -> bool:
    """Return whether a person decides: because settings say so or did when it was asked, or because one has done it."""
    return settings.approval == "manual" or run.stage(STAGE).is_dir() or (run.folder / WAITING).is_file()


def approval(run: Run, version: str, settings: PromotionSettings) -> Said:
    """Return what a person says of the challenger, for whom the flow run pauses; "nothing" when nobody can or does.

    Without a Prefect server nobody could answer: then it does not wait.
    """
    if run.stage(STAGE).is_dir():
        given = read_json(run.stage(STAGE) / "manifest.json")
        if given["inputs"]["verdict_sha256"] != _verdict_digest(run):
            raise Spoiled(
                f"retrain {run.request.retrain_id} was answered on another verdict than its judge/verdict.json has "
                f"now: somebody has changed one of the two; --again makes a new retrain"
            )
        return _said(given["result"])
    command = f"python -m flows.retrain --approve {run.request.retrain_id}"
    logger = get_run_logger()
    if not PREFECT_API_URL.value():
        logger.warning("version %s waits for approval; there is no Prefect server to ask on: %s", version, command)
        return "nothing"
    seconds = settings.timeout_hours * 3600
    with _waiting(run, seconds):
        logger.warning("version %s waits for approval: resume this flow run, or %s", version, command)
        form = Answer.with_initial_data(description=shown(run, version))
        try:
            answer = pause_flow_run(wait_for_input=form, timeout=max(1, round(seconds)), poll_interval=2)
        except FlowPauseTimeout:
            logger.warning("nobody answered within promotion.timeout_hours = %g", settings.timeout_hours)
            return "nothing"
    return _said(_write(run, answer.approve, answer.by, answer.note))


def give(run: Run, by: str, note: str) -> None:
    """Approve a challenger that was held for a person: the retrain can go on, or the flow run that waits does.

    Raises InputError when the retrain has no challenger, its checks failed or it ended otherwise, or the answer is none
    that can be kept; Failure when the flow run that waits for the answer cannot be reached.
    """
    _check_answer(by, note)
    check(run)
    logger = get_run_logger()
    if not run.is_free():
        logger.info("retrain %s is at work: it gets the answer as soon as it waits for one", run.request.retrain_id)
    if _resumed(run, by, note):
        logger.info("the answer went to the flow run that waits for it")
        return
    with run.locked(lambda: logger.info("retrain %s is at work: waiting", run.request.retrain_id)):
        check(run)  # it may have ended meanwhile
        _write(run, True, by, note)
        for ended in ("result.json", WAITING):  # a process that was killed while it waited left the latter
            (run.folder / ended).unlink(missing_ok=True)


def _check_answer(by: str, note: str) -> None:
    """Raise InputError for what the form in Prefect's UI would refuse."""
    try:
        Answer(approve=True, by=by, note=note)
    except ValidationError as error:
        (first, *_) = error.errors(include_url=False, include_context=False, include_input=False)
        raise InputError(f"--{first['loc'][0]}: {first['msg'].removeprefix('Value error, ')}") from None


def check(run: Run) -> None:
    """Raise InputError when there is nothing about this retrain that a person could approve."""
    name, done, manifests = run.request.retrain_id, run.result(), run.manifests()
    if done is not None and done["outcome"] == "promoted":
        raise InputError(
            f"retrain {name} was promoted already, as version {done['champion']}: nothing is to be approved"
        )
    if "judge" not in manifests:
        why = done["reason"] if done else "it has not come so far; start it again without --approve"
        raise InputError(f"retrain {name} has no challenger to approve: {why}")
    judged = manifests["judge"]["result"]
    if judged["outcome"] == "fail":
        raise InputError(f"retrain {name} cannot be approved, its checks failed: {judged['reason']}")
    if STAGE in manifests and _said(manifests[STAGE]["result"]) == "refused":
        said = manifests[STAGE]["result"]
        raise InputError(f"retrain {name} was refused by {said['by']!r}: --again makes a new one")


def shown(run: Run, version: str) -> str:
    """Return the verdict as Markdown, for whoever has to answer."""
    judged = run.manifests()["judge"]["result"]
    before = run.request.champion
    head = (
        f"**Version {version} of {run.request.student}** is to replace "
        f"{f'version {before.version}' if before else 'nothing: it would be the first champion'}.\n\n"
        f"Window {run.request.window}. Verdict: **{judged['outcome']}**. {judged['reason']}\n\n"
    )
    small = run.manifests()["bento"]["result"].get("int8", {})
    packed = [f"{name.replace('_', ' ')} {value:.3g}" for name, value in small.items()]
    told = [f"Its Bento has 8-bit weights, beside the checkpoint: {', '.join(packed)}.\n\n"] if packed else []
    return "".join((head, *told, card.checks(judged)))


def tags(run: Run) -> dict[str, str]:
    """Return by whom a version was let through or refused, as registry tags; raises Failure for what it cannot keep."""
    if not run.stage(STAGE).is_dir():
        return {"approval": "auto"}
    said = read_json(run.stage(STAGE) / "manifest.json")["result"]
    how, done = ("person", "approved") if said["approved"] else ("refused", "refused")
    found = {"approval": how, f"{done}_by": said["by"], f"{done}_at": said["at"], "approval_note": said["note"]}
    for key, value in found.items():
        if wrong := text.fault(value):
            raise Failure(
                f"{key} of retrain {run.request.retrain_id} {wrong}, which no registry keeps: delete "
                f"{str(run.stage(STAGE))!r} and give the answer anew"
            )
    return {key: value for key, value in found.items() if value}


def _said(result: Mapping[str, Any]) -> Said:
    return "approved" if result["approved"] else "refused"


def _write(run: Run, approved: bool, by: str, note: str) -> dict[str, Any]:
    """Keep the answer, with the digest of the verdict that it was given on."""
    said = {"approved": approved, "by": by, "note": note, "at": datetime.now(UTC).isoformat(timespec="seconds")}
    return run_stage(run, STAGE, lambda _: said, inputs={"verdict_sha256": _verdict_digest(run)})


def _verdict_digest(run: Run) -> str:
    return hashlib.sha256((run.stage("judge") / "verdict.json").read_bytes()).hexdigest()


@contextmanager
def _waiting(run: Run, seconds: float) -> Iterator[None]:
    """Say in the run's folder which flow run waits, so that an answer at a prompt finds it."""
    until = datetime.now(UTC) + timedelta(seconds=seconds)
    write_json(
        run.folder / WAITING,
        {"flow_run": str(flow_run.id), "api": PREFECT_API_URL.value(), "process": os.getpid(), "until": until},
    )
    try:
        yield
    finally:
        (run.folder / WAITING).unlink(missing_ok=True)


def _resumed(run: Run, by: str, note: str) -> bool:
    """Hand the answer to the flow run that waits, or is about to; False as soon as no process is at work on it.

    Raises Failure when it waits on another Prefect server, or does not take the answer within PATIENCE.
    """
    since, refused = time.monotonic(), None
    while not run.is_free():  # else nobody is at work on it: what waited has ended, or was killed
        if (waiting := _waits(run)) is None:
            since = time.monotonic()
        else:
            refused = _answer(run, waiting, by, note)
            if refused is None:
                return True
            if time.monotonic() - since > PATIENCE:
                raise Failure(
                    f"flow run {waiting['flow_run']} waits for the answer on retrain {run.request.retrain_id} and has "
                    f"not taken it for {PATIENCE:g} s ({type(refused).__name__}: {refused}): look at it in Prefect's "
                    f"UI, or end its process {waiting['process']}; then give the same answer again"
                ) from refused
        time.sleep(POLL)
    return False


def _waits(run: Run) -> dict[str, Any] | None:
    try:
        return read_json(run.folder / WAITING)
    except FileNotFoundError:
        return None


def _answer(run: Run, waiting: Mapping[str, Any], by: str, note: str) -> Exception | None:
    """Resume the flow run that waits; returns why it was not possible, as before it has paused and after it went on."""
    if PREFECT_API_URL.value() != waiting["api"]:
        raise Failure(
            f"retrain {run.request.retrain_id} waits for its answer on the Prefect server {waiting['api']}: set "
            "PREFECT_API_URL to it, or answer in its UI"
        )
    try:
        resume_flow_run(UUID(waiting["flow_run"]), run_input={"approve": True, "by": by, "note": note})
    except (NotPausedError, FlowPauseTimeout, ObjectNotFound, RuntimeError) as error:
        return error
    return None


def waiting(runs: Path) -> list[str]:
    """Return the ids of the retrains that wait for a person, the latest first."""
    found = [path.parent.parent for path in runs.glob("*/judge/manifest.json")]
    held = [folder for folder in found if _held(folder)]
    return [folder.name for folder in sorted(held, key=lambda folder: -folder.stat().st_mtime)]


def _held(folder: Path) -> bool:
    result = folder / "result.json"
    return (folder / WAITING).is_file() or (result.is_file() and read_json(result)["outcome"] == "held")
