"""Progress of long work: a bar at a terminal, an artifact in Prefect's interface."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from tqdm import tqdm

SECONDS_BETWEEN_UPDATES = 2.0
_model_seconds = 0.0


def model_seconds() -> float:
    """Return how long this process has waited for teacher, training and scoring, all that has a bar."""
    return _model_seconds


@contextmanager
def bar(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback (done, total) that draws a bar on standard error; silent where that is no terminal."""
    global _model_seconds
    began = time.monotonic()
    with tqdm(desc=what, unit=f" {unit}", file=sys.stderr, disable=None, leave=True) as shown:

        def update(done: int, total: int) -> None:
            shown.total = total
            shown.update(done - shown.n)

        try:
            yield update
        finally:
            _model_seconds += time.monotonic() - began


@contextmanager
def artifact(key: str, description: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback (done, total) that keeps a Prefect progress artifact up to date, every few seconds."""
    identity = cast(UUID, create_progress_artifact(progress=0.0, key=key, description=description))
    last = time.monotonic()

    def update(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done == total or now - last > SECONDS_BETWEEN_UPDATES:
            update_progress_artifact(artifact_id=identity, progress=100.0 * done / total)
            last = now

    yield update
