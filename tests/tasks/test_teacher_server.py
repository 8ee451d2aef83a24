"""The servers that a retrain starts, for its teacher and for its student: one of each, for as long as it lives."""

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from deployments.sglang import server
from deployments.sglang.server import Options, Served, argv
from distill.generation import Sampling
from distill.on_policy_settings import OnPolicySettings
from distill.settings import StudentSettings, TrainingSettings
from distill.teacher_settings import TeacherSettings
from distill.teachers.sglang import SGLangTeacher
from monitoring.settings import TrafficSettings
from tasks import rounds, teacher_server
from tasks.run import Run
from tasks.teaching import Teaching

WORDS = "--tensor-parallel-size 2 --log-level 'warning'"


@contextmanager
def asked_of(whose: str, folder: Path, checkpoint: Path) -> Iterator[Callable[[], Any]]:
    """Give what is called for the addresses of the server that a retrain in `folder` starts."""
    teacher = TeacherSettings(backend="sglang", serve=True, device="cpu", server_options=WORDS, start_seconds=77.0)
    if whose == "teacher":
        asked = teacher_server.addresses(teacher, str(checkpoint), "")
        assert callable(asked)
        yield asked
        return
    policy = OnPolicySettings(sampler="sglang", server_options=WORDS)
    teaching = Teaching(
        StudentSettings(), teacher, TrainingSettings(), TrafficSettings(), "signals", folder, on_policy=policy
    )
    request: Any = None  # of which nothing is needed here
    with rounds._sampler(Run(folder, request), teaching, checkpoint) as sampler:
        sampling = sampler(checkpoint, Sampling(1.0, 1))
        assert isinstance(sampling, SGLangTeacher)
        assert callable(sampling.urls)
        yield sampling.urls


@pytest.mark.parametrize("whose", ["teacher", "student"])
def test_a_server_that_has_ended_by_itself_is_started_again_with_its_options_when_it_is_needed_next(
    whose: str,
    tiny_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    started: list[Any] = []
    told: list[Options] = []

    @contextmanager
    def serving(options: Options, *, log: Path, timeout: float) -> Iterator[Served]:
        told.append(options)
        assert (log, timeout) == (tmp_path / f"{whose}-server.log", 77.0)
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
            started.append(process)
            try:
                yield Served(f"http://127.0.0.1:{len(started)}", process, log, 0.0)
            finally:
                process.kill()

    monkeypatch.setattr(server, "serving", serving)
    monkeypatch.setattr(teacher_server, "get_run_logger", lambda: logging.getLogger("run"))
    caplog.set_level(logging.INFO)
    held = teacher_server.taken_down_afterwards(tmp_path) if whose == "teacher" else nullcontext()
    with held, asked_of(whose, tmp_path, tiny_checkpoint) as asked:
        assert asked() == asked() == ("http://127.0.0.1:1",)
        assert f"for {whose} {tiny_checkpoint}, what it says is in {tmp_path}/{whose}-server.log" in caplog.text
        started[0].kill()
        started[0].wait(60)
        assert asked() == asked() == ("http://127.0.0.1:2",)
    assert [process.poll() is None for process in started] == [False, False]
    assert [argv(options, 1)[-4:] for options in told] == [
        ["--tensor-parallel-size", "2", "--log-level", "warning"]
    ] * 2
