"""Settings -> the sections, places and registry that the tasks are given."""

import os
from pathlib import Path

from prefect.context import FlowRunContext
from prefect.logging import get_logger, get_run_logger

from deployments.registry import Registry, connect
from deployments.tracking import API_KEY, Tracker
from distill import checkpoint
from flows.settings import NO_WORKSPACE, SQLITE, Settings, SettingsError, database_in
from tasks.limit import one_at_a_time
from tasks.probe import Probing
from tasks.run import Run
from tasks.teaching import Teaching, secret
from tasks.watch import Watching


class Places:
    """Where everything of a workspace lies."""

    def __init__(self, settings: Settings) -> None:
        if not settings.workspace:
            raise SettingsError(NO_WORKSPACE)
        workspace = Path(settings.workspace).expanduser().absolute()
        workspace.mkdir(parents=True, exist_ok=True)
        self.workspace = workspace
        self.runs = workspace / "runs"
        self.ledger = workspace / "decisions.db"
        self.log = settings.place(settings.traffic.path, "traffic")
        self.signals = settings.place(settings.teacher.signals, "signals")
        metrics = settings.teacher.metrics_file
        self.teacher_metrics = Path(settings.place(metrics, "")) if metrics else None
        self.bentos = Path(settings.place(settings.packaging.home, "bentoml"))
        self.registry_uri = database_in(workspace, settings.registry.uri or f"{SQLITE}mlflow.db")
        # A server has an artifact store of its own; the local database has the workspace.
        local = "mlartifacts" if self.registry_uri.startswith("sqlite:") else ""
        self.artifacts = settings.registry.artifacts or (local and str(workspace / local))


def registry(settings: Settings, places: Places, *, recover: bool = True) -> Registry:
    """Return the registry, a promotion or rollback in it that was cut short finished; Failure if it does not answer."""
    found = connect(places.registry_uri, places.artifacts, settings.student.name, timeout=settings.registry.timeout)
    if recover and (told := _recovered(found)):
        logger = get_run_logger() if FlowRunContext.get() else get_logger("redistill")
        logger.warning("registry: %s", told)
    return found


def _recovered(registry: Registry) -> str:
    """Finish what was cut short, and say so; what a promotion or rollback is at work on is left to it.

    Written twice does no harm, but a write that comes late could put an older champion back. So it waits for the same
    limit, if there is something to wait for.
    """
    if all(move.done for move in registry.moves()[-1:]):
        return ""
    with one_at_a_time(registry.student):
        return registry.recover()


def tracker(settings: Settings) -> Tracker | None:
    """Return what a retrain is tracked by besides MLflow, None for nothing; InputError where its key is missing."""
    chosen = settings.registry
    if not chosen.wandb:
        return None
    key = ""
    if chosen.wandb == "online":
        key = secret(chosen.wandb_key_secret, "registry.wandb_key_secret") or os.environ.get(API_KEY, "")
        if not key:
            raise SettingsError(
                f"registry.wandb = 'online' needs a key: set {API_KEY} in the environment, or "
                "registry.wandb_key_secret to a Prefect Secret block"
            )
    return Tracker(chosen.wandb, chosen.wandb_project, key, chosen.wandb_timeout)


def watching(settings: Settings) -> Watching:
    """Return what watching goes by."""
    return Watching(
        settings.traffic, settings.features, settings.drift, settings.policy, settings.student, settings.teacher
    )


def teaching(settings: Settings, places: Places) -> Teaching:
    """Return what the teacher is asked by."""
    return Teaching(
        settings.student,
        settings.teacher,
        settings.training,
        settings.traffic,
        places.signals,
        places.ledger,
        settings.mixture,
        settings.audit,
        places.teacher_metrics,
        settings.on_policy,
    )


def probing(settings: Settings) -> Probing:
    """Return what a retrain is weighed by before it is paid for."""
    return Probing(settings.probe, settings.judging, settings.policy.budget_tokens)


def start_of(run: Run, settings: Settings) -> Path:
    """Return the checkpoint that the student starts from: the frozen champion, or the base of the first one."""
    if run.request.champion is not None:
        return Path(run.request.champion.checkpoint)
    return checkpoint.resolve(settings.student.base, "student.base")
