"""The SGLang server of settings with `teacher.serve`: started by who asks first, taken down when the flow ends."""

import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING

from prefect.logging import get_run_logger

from distill.errors import InputError
from distill.teacher_settings import TeacherSettings

if TYPE_CHECKING:
    from deployments.sglang.server import Served


class _Held:
    """At most one server, and what takes it down."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack, self.starting = stack, Lock()
        self.served: Served | None = None


_HELD: ContextVar[_Held | None] = ContextVar("teacher_server", default=None)


@contextmanager
def taken_down_afterwards() -> Iterator[None]:
    """Take down, when the block ends, the server that was started in it, if any."""
    with ExitStack() as stack:
        before = _HELD.set(_Held(stack))
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
    from deployments.sglang.server import Options, device_of, serving

    held = _HELD.get()
    if held is None:
        raise InputError(
            "teacher.serve is for flows: start a server with `python -m deployments.sglang serve` and name it in "
            "teacher.urls"
        )
    with held.starting:
        if held.served is None or held.served.process.poll() is not None:  # none yet, or it has ended by itself
            get_run_logger().info("starting an SGLang server for teacher %s", folder)
            words = shlex.split(teacher.server_options)
            options = Options(model=folder, device=device_of(teacher.device), api_key=api_key, extra=words)
            held.served = held.stack.enter_context(serving(options))
            get_run_logger().info("teacher ready at %s after %.0f s", held.served.url, held.served.seconds_to_ready)
        return (held.served.url,)
