"""The SGLang server of settings with `teacher.serve`: started by who asks first, taken down when the flow ends.

What it says is in the run's folder, teacher-server.log; that of a student's server (tasks.rounds) beside it.
"""

import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from prefect.logging import get_run_logger

from distill.errors import InputError
from distill.teacher_settings import TeacherSettings

if TYPE_CHECKING:
    from deployments.sglang.server import Served


class Held:
    """At most one server, and what takes it down. whose: teacher or student; its log is in `folder`."""

    def __init__(self, stack: ExitStack, folder: Path, whose: str) -> None:
        self.stack, self.whose, self.starting = stack, whose, Lock()
        self.log = folder / f"{whose}-server.log"
        self.served: Served | None = None

    def url(self, model: str, teacher: TeacherSettings, words: str, api_key: str) -> str:
        """Return where the server is, which is started if there is none yet or it has ended by itself."""
        from deployments.sglang.server import Options, device_of, serving

        with self.starting:
            if self.served is None or self.served.process.poll() is not None:
                logger = get_run_logger()
                logger.info("starting an SGLang server for %s %s, what it says is in %s", self.whose, model, self.log)
                device = device_of(teacher.device)
                options = Options(model=model, device=device, api_key=api_key, extra=shlex.split(words))
                server = serving(options, log=self.log, timeout=teacher.start_seconds)
                self.served = self.stack.enter_context(server)
                logger.info("%s ready at %s after %.0f s", self.whose, self.served.url, self.served.seconds_to_ready)
            return self.served.url


_HELD: ContextVar[Held | None] = ContextVar("teacher_server", default=None)


@contextmanager
def taken_down_afterwards(folder: Path) -> Iterator[None]:
    """Take down, when the block ends, the server that was started in it, if any; its log is in `folder`."""
    with ExitStack() as stack:
        before = _HELD.set(Held(stack, folder, "teacher"))
        try:
            yield
        finally:
            _HELD.reset(before)


def check(teacher: TeacherSettings) -> None:
    """Raise InputError where SGLang would have to be started and is not installed."""
    if teacher.backend == "sglang" and teacher.serve:
        check_installed("teacher.serve")


def check_installed(setting: str) -> None:
    """Raise InputError, naming the setting that needs it, where SGLang is not installed."""
    from deployments.errors import InputError as CannotServe
    from deployments.sglang.server import interpreter

    try:
        interpreter()
    except CannotServe as error:
        raise InputError(f"{setting}: {error}") from error


def addresses(teacher: TeacherSettings, folder: str, api_key: str) -> "tuple[str, ...] | partial[tuple[str, ...]]":
    """Return the servers that the settings name, or what starts one when it is called."""
    return partial(_started, teacher, folder, api_key) if teacher.serve else teacher.urls


def _started(teacher: TeacherSettings, folder: str, api_key: str) -> tuple[str, ...]:
    held = _HELD.get()
    if held is None:
        raise InputError(
            "teacher.serve is for flows: start a server with `python -m deployments.sglang serve` and name it in "
            "teacher.urls"
        )
    return (held.url(folder, teacher, teacher.server_options, api_key),)
