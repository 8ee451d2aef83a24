"""The server that a retrain starts for its teacher: one, for as long as it lives."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prefect.logging import disable_run_logger

from deployments.sglang import server
from deployments.sglang.server import Options, Served, argv
from distill.teacher_settings import TeacherSettings
from tasks import teacher_server


def test_a_server_that_has_ended_by_itself_is_started_again_with_its_options_when_it_is_needed_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[Any] = []
    told: list[Options] = []

    @contextmanager
    def serving(options: Options) -> Iterator[Served]:
        told.append(options)
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
            started.append(process)
            try:
                yield Served(f"http://127.0.0.1:{len(started)}", process, tmp_path / "log", 0.0)
            finally:
                process.kill()

    monkeypatch.setattr(server, "serving", serving)
    teacher = TeacherSettings(
        backend="sglang", serve=True, device="cpu", server_options="--tensor-parallel-size 2 --log-level 'warning'"
    )
    asked = teacher_server.addresses(teacher, "model", "")
    assert callable(asked)
    with disable_run_logger(), teacher_server.taken_down_afterwards():
        assert asked() == asked() == ("http://127.0.0.1:1",)
        started[0].kill()
        started[0].wait(60)
        assert asked() == asked() == ("http://127.0.0.1:2",)
    assert [process.poll() is None for process in started] == [False, False]
    assert [argv(options, 1)[-4:] for options in told] == [
        ["--tensor-parallel-size", "2", "--log-level", "warning"]
    ] * 2
