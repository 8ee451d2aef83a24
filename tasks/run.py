"""A retrain's folder: one request, one folder a finished stage, one result.

runs/<retrain_id>/request.json          what was asked, with its base champion, frozen
runs/<retrain_id>/<stage>.partial/      a stage at work; never taken for a finished one
runs/<retrain_id>/<stage>.asked.npy     keys of the signals that were lacking when the stage asked the teacher; each
                                        on-policy round has its own, train-<round>.asked.npy
runs/<retrain_id>/<stage>/manifest.json inputs, settings, code revision, start, end, cost, result
runs/<retrain_id>/<who>-server.log      what a server said that was started for teacher or student
runs/<retrain_id>/spoiled.json          why it can never end well, if that was found: --again makes a new one then
runs/<retrain_id>/result.json           the end
"""

import errno
import fcntl
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from deployments.errors import Spoiled
from tasks import progress

SPOILED = "spoiled.json"


class Champion(BaseModel):
    """The champion that a retrain starts from."""

    model_config = ConfigDict(frozen=True)

    version: str
    checkpoint: str  # local folder
    digest: str
    retrain_id: str
    trained: list[str]  # windows it and its ancestors learned from
    profiled: list[str]  # windows its ancestors' and its own profile were made from, the newest last


class Request(BaseModel):
    """What a retrain was asked; `champion` is frozen when the request is first made."""

    model_config = ConfigDict(frozen=True)

    retrain_id: str
    student: str
    window: str
    profile_window: str
    window_digest: str
    window_rows: int
    force: bool
    teacher: str  # digest
    base: str | None = None  # digest of what the first champion starts from
    settings: dict[str, Any]  # those that change the result
    champion: Champion | None
    notice: str = ""
    judged_by: dict[str, str] = {}  # digests of the golden set and of lm-eval's tasks, where there are any


@dataclass(frozen=True)
class Run:
    """A retrain's folder and its request."""

    folder: Path
    request: Request

    def result(self) -> dict[str, Any] | None:
        """Return how the retrain ended, or None while it has not."""
        return read_json(self.folder / "result.json") if (self.folder / "result.json").is_file() else None

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the end of the retrain."""
        write_json(self.folder / "result.json", result)

    def stage(self, name: str) -> Path:
        """Return the folder of a finished stage."""
        return self.folder / name

    def asked(self, name: str) -> Path:
        """Return the file of what a stage asks the teacher; it outlives a stage that was killed."""
        return self.folder / f"{name}.asked.npy"

    def reopen(self, stage: str) -> None:
        """Take back the end of the retrain and of its last stage, which is done again."""
        shutil.rmtree(self.stage(stage), ignore_errors=True)
        (self.folder / "result.json").unlink(missing_ok=True)

    def manifests(self) -> dict[str, dict[str, Any]]:
        """Return the manifests of the finished stages by name, in the order in which they ended."""
        found = {path.parent.name: read_json(path) for path in self.folder.glob("*/manifest.json")}
        finished = {name: manifest for name, manifest in found.items() if not name.endswith(".partial")}
        return dict(sorted(finished.items(), key=lambda item: str(item[1]["end"])))

    def is_spoiled(self) -> bool:
        """Return whether a stage found that this retrain can never end well."""
        return (self.folder / SPOILED).is_file()

    @contextmanager
    def marked_if_spoiled(self) -> Iterator[None]:
        """Write into the retrain's folder what the block finds that no further attempt will mend."""
        try:
            yield
        except Spoiled as error:
            write_json(self.folder / SPOILED, {"reason": str(error), "at": datetime.now(UTC)})
            raise

    def is_free(self) -> bool:
        """Return whether no process is at work on this retrain."""
        with (self.folder / ".lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    @contextmanager
    def locked(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Hold the retrain's lock; calls `waiting` first when another process holds it. Ends with the process."""
        with (self.folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


def profile_folder(runs: Path, champion: Champion) -> Path:
    """Return where a champion's reference profile lies: in the run that made it."""
    return runs / champion.retrain_id / "profile"


def run_stage(
    run: Run,
    name: str,
    work: Callable[[Path], dict[str, Any]],
    *,
    inputs: Mapping[str, Any],
    settings: Mapping[str, Any] | BaseModel | None = None,
    resumable: bool = False,
) -> dict[str, Any]:
    """Return the result of a stage: from its manifest when it is finished, else by doing its work.

    `work` is given the stage's partial folder, empty unless `resumable`, and returns its result (JSON). The folder
    takes its name when all is written. Raises what `work` raises; a full disk is said in the error.
    """
    done = run.stage(name)
    if (done / "manifest.json").is_file():
        return dict(read_json(done / "manifest.json")["result"])
    partial = run.folder / f"{name}.partial"
    if not resumable:
        shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True, exist_ok=True)
    start, models = datetime.now(UTC), progress.model_seconds()
    with _saying_when_the_disk_is_full(name, run.folder):
        result = work(partial)
        end = datetime.now(UTC)
        manifest = {
            "stage": name,
            "retrain_id": run.request.retrain_id,
            "inputs": dict(inputs),
            "settings": settings.model_dump() if isinstance(settings, BaseModel) else dict(settings or {}),
            "code_revision": code_revision(),
            "start": start.isoformat(),
            "end": end.isoformat(),
            "seconds": round((end - start).total_seconds(), 3),
            "model_seconds": round(progress.model_seconds() - models, 3),
            "peak_memory_mb": round(_peak_memory_mb(), 1),
            "result": result,
        }
        write_json(partial / "manifest.json", manifest)
        _sync(partial)
        os.replace(partial, done)
        _sync(run.folder)
    return result


@contextmanager
def _saying_when_the_disk_is_full(stage: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or shutil.disk_usage(folder).free < 2**20:
            raise OSError(
                errno.ENOSPC,
                f"stage {stage!r}: the disk that holds {str(folder)!r} is full ({type(error).__name__}); make room and "
                "give the same command again, it goes on from the last finished stage",
            ) from error
        raise


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object."""
    return dict(json.loads(path.read_text(encoding="utf-8")))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object so that a reader sees the old file or the new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, default=str)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


@cache
def code_revision() -> str:
    """Return the version of this package, with the git revision where it runs from a checkout."""
    root = Path(__file__).resolve().parent.parent
    git = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    released = f"redistill {version('redistill')}"
    if not (root / ".git").exists():
        return released
    try:
        found = subprocess.run(git, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # a checkout on a machine without git
        return released
    return f"{released} {found.stdout.strip()}" if found.returncode == 0 else released


def _peak_memory_mb() -> float:
    """Of this process and the largest of its finished children, so far."""
    kilobytes = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return kilobytes / 1024


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
