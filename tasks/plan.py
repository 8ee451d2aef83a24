"""What is asked: the window, the champion it is held against, and the run folder of exactly this request."""

import hashlib
import itertools
import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from deployments.bento.smoke import free_port
from deployments.registry import Registry, Version
from deployments.settings import PackagingSettings
from distill import checkpoint
from distill.errors import InputError
from distill.on_policy_settings import OnPolicySettings
from distill.settings import StudentSettings, TrainingSettings
from distill.teacher_settings import TeacherSettings
from monitoring import traffic
from monitoring.errors import InputError as WatchingInputError
from monitoring.judging_settings import JudgingSettings
from monitoring.settings import ReferenceSettings, TrafficSettings
from monitoring.traffic import Window
from tasks import judged_by
from tasks.run import Champion, Request, Run, read_json, write_json

WINDOW_FILE, GOLDEN_FILE = "window.parquet", "golden.parquet"


@dataclass(frozen=True)
class Asked:
    """What the caller of a retrain asked for."""

    window: str | None
    force: bool
    again: bool


@task(name="plan", cache_policy=NO_CACHE)
def plan(
    asked: Asked,
    registry: Registry,
    runs: Path,
    log: str,
    *,
    traffic_settings: TrafficSettings,
    reference: ReferenceSettings,
    student: StudentSettings,
    teacher: TeacherSettings,
    packaging: PackagingSettings,
    training: TrainingSettings,
    on_policy: OnPolicySettings,
    judging: JudgingSettings,
    changing: dict[str, Any],
) -> Run:
    """Return the run of this request: the finished one, the unfinished one, or a new one.

    Raises InputError when the window is empty, or a model or what is judged by cannot be used; nothing has been
    started then.
    """
    from distill.divergence import check_kernel
    from distill.models import resolve_device
    from tasks import rounds

    champion = current_champion(registry, runs.parent / "checkpoints")
    if champion and asked.window is None and (unfinished := _unfinished(runs, champion, asked)):
        get_run_logger().info("completing retrain %s, which was stopped after its promotion", champion.retrain_id)
        return unfinished
    window, profile_window, notice = choose_window(asked.window, champion, log, traffic_settings.window_days, reference)
    if notice:
        get_run_logger().warning(notice)
    frame = rows_of(log, window)
    teacher_digest = _usable_models(student, teacher, champion)
    golden = judged_by.golden(judging)
    request = Request(
        retrain_id="",
        student=student.name,
        window=str(window),
        profile_window=profile_window,
        window_digest=traffic.window_digest(frame),
        window_rows=len(frame),
        force=asked.force,
        teacher=teacher_digest,
        base=checkpoint.digest(student.base) if Path(student.base).is_dir() else student.base,
        settings=changing,
        champion=champion,
        notice=notice,
        judged_by=judged_by.digests(golden, judging),
    )
    found, retrain_id = _latest(request, runs, again=asked.again)
    if found is not None and found.result():
        return found
    free_port(packaging.port)
    resolve_device(teacher.device)
    check_kernel(training.loss_kernel, resolve_device(training.device))
    rounds.check(training, on_policy)
    _check_split(frame, log, request, traffic_settings)
    if champion:
        judged_by.check_fairness(
            frame[traffic.row_hash(frame["request_id"]) >= traffic_settings.held_out_from], judging
        )
    return found or _new(request.model_copy(update={"retrain_id": retrain_id}), runs, frame, golden)


def current_champion(registry: Registry, cache: Path) -> Champion | None:
    """Return the registry's champion with its checkpoint at hand (in `cache` if fetched), or None when there is none.

    Raises InputError when the checkpoint lacks a part or is not the one that was registered.
    """
    version = registry.champion()
    return None if version is None else _at_hand(registry, version, cache)


def _at_hand(registry: Registry, version: Version, cache: Path) -> Champion:
    folder = registry.fetch(version.version, cache, fresh=False)
    checkpoint.check(folder, f"champion (version {version.version})")
    digest = checkpoint.digest(folder)
    if missing := [tag for tag in ("sha256", "retrain_id", "trained", "profiled") if tag not in version.tags]:
        raise InputError(
            f"champion (version {version.version}) has no tag {', '.join(missing)}: it was not registered by a "
            "retrain; point the alias champion at a version that was"
        )
    if digest != version.tags["sha256"]:
        raise InputError(
            f"champion (version {version.version}) at {str(folder)!r} is not what was registered: its SHA-256 is "
            f"{digest[:12]}, registered was {version.tags['sha256'][:12]}; restore it, or roll back"
        )
    return Champion(
        version=version.version,
        checkpoint=str(folder),
        digest=digest,
        retrain_id=version.tags["retrain_id"],
        trained=json.loads(version.tags["trained"]),
        profiled=json.loads(version.tags["profiled"]),
    )


def choose_window(
    asked: str | None, champion: Champion | None, log: str, window_days: float, reference: ReferenceSettings
) -> tuple[Window, str, str]:
    """Return the window to look at, the window of its profile, and a notice when that is not what was asked."""
    whole = traffic.span(log)
    if champion is not None:
        # Whole days: the same window all day long, however often it is asked for while traffic comes in.
        if asked:
            return Window.parse(asked), str(Window.parse(asked)), ""
        now = datetime.now(UTC)
        last, notice = whole.end, ""
        if whole.start < now < last - timedelta(days=1):
            notice = f"the log has rows dated up to {last}, later than now: the window ends now; mend their dates"
            last = now
        midnight = last.replace(hour=0, minute=0, second=0, microsecond=0)
        end = midnight if midnight > whole.start else last
        window = Window(max(whole.start, end - timedelta(days=window_days)), end)
        return window, str(window), notice
    window = Window.parse(reference.window or asked or str(whole))
    profile = Window.parse(reference.profile) if reference.profile else window
    notice = ""
    if asked and reference.window and Window.parse(asked) != window:
        notice = (
            f"there is no champion yet: the first one is made from reference.window {reference.window}; "
            f"the window {asked} was not looked at, give the same command again for it"
        )
    return window, str(profile), notice


def rows_of(log: str, window: Window) -> pd.DataFrame:
    """Return the rows of a window; raises InputError when there are none."""
    frame = traffic.read_window(log, window)
    if frame.empty:
        raise WatchingInputError(f"window {window} holds no rows: the request log {log!r} spans {traffic.span(log)}")
    return frame


def _usable_models(student: StudentSettings, teacher: TeacherSettings, champion: Champion | None) -> str:
    """Return the teacher's digest; raises InputError when it cannot teach this student."""
    from distill.prompts import load_tokenizer
    from distill.teachers.chosen import teacher_of
    from distill.teachers.spoken import Spoken
    from tasks import teacher_server

    teacher_server.check(teacher)
    start = Path(champion.checkpoint) if champion else checkpoint.resolve(student.base, "student.base")
    tokenizer = load_tokenizer(start)
    urls = teacher_server.addresses(teacher, teacher.model, "")
    asked = teacher_of(student, teacher, urls=urls, spoken=Spoken(tokenizer))
    asked.check(tokenizer, teacher.top_k)
    return asked.digest


def _check_split(frame: pd.DataFrame, log: str, request: Request, settings: TrafficSettings) -> None:
    """Raise InputError when the window has no rows to learn from, to judge by or to profile."""
    hashes = traffic.row_hash(frame["request_id"])
    profiled = frame
    if request.profile_window != request.window:
        profiled = rows_of(log, Window.parse(request.profile_window))
    of_profile = traffic.row_hash(profiled["request_id"])
    counts = {
        f"to learn from (hash below traffic.held_out_from = {settings.held_out_from})": hashes < settings.held_out_from,
        f"held out to judge by (hash from {settings.held_out_from} on)": hashes >= settings.held_out_from,
        f"for the profile of {request.profile_window} (hash below traffic.profile_until = {settings.profile_until})": (
            (of_profile >= settings.held_out_from) & (of_profile < settings.profile_until)
        ),
    }
    for what, chosen in counts.items():
        if not chosen.any():
            raise WatchingInputError(
                f"window {request.window} has {len(frame)} rows, but none {what}: choose a longer window"
            )


def _latest(request: Request, runs: Path, *, again: bool) -> tuple[Run | None, str]:
    """Return the latest run of the same request, or None and the id of a new one.

    On `again` it is a new one when the latest has ended, or could never be promoted: its champion has been replaced
    since, or it is spoiled. One that was only killed goes on.
    """
    first, latest = _identity(request), None
    for number in itertools.count(1):
        retrain_id = first if number == 1 else f"{first}-{number}"
        if not (runs / retrain_id / "request.json").is_file():
            break
        latest = open_run(runs / retrain_id)
    if latest is not None and again:
        over = latest.result() or latest.is_spoiled()
        latest = None if over or latest.request.champion != request.champion else latest
    return latest, retrain_id


def _new(request: Request, runs: Path, frame: pd.DataFrame, golden: pd.DataFrame | None) -> Run:
    run = Run(runs / request.retrain_id, request)
    run.folder.mkdir(parents=True, exist_ok=True)
    for name, rows in ((WINDOW_FILE, frame), (GOLDEN_FILE, golden)):
        if rows is not None:
            partial = run.folder / f".{name}.{os.getpid()}"  # another process may be making the same request
            rows.to_parquet(partial, index=False)
            os.replace(partial, run.folder / name)
    write_json(run.folder / "request.json", request.model_dump())
    return run


def _identity(request: Request) -> str:
    """Student, window contents, what changes the result, and the models by content; not the champion of the day."""
    asked = request.model_dump(include={"student", "window_digest", "settings", "teacher", "base", "force"})
    asked |= {"judged_by": request.judged_by} if request.judged_by else {}  # earlier requests had none
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]


def open_run(folder: Path) -> Run:
    """Return the run of a folder that has a request."""
    return Run(folder, Request.model_validate(read_json(folder / "request.json")))


def _unfinished(runs: Path, champion: Champion, asked: Asked) -> Run | None:
    folder = runs / champion.retrain_id
    if not (folder / "request.json").is_file():
        return None
    run = open_run(folder)
    return None if run.result() or (asked.again and run.is_spoiled()) else run
