"""Small workspaces: a help-desk log, a tiny random teacher and base. What they learn is nonsense, the loop is real."""

import itertools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from demo.workspace import write_config

REFERENCE = "2025-04-01..2025-04-11"
LATER = "2025-04-11..2025-04-18"


@dataclass(frozen=True)
class Workspace:
    """A workspace with its settings file and the command line for it."""

    folder: Path
    config: Path

    def command(self, *options: str, flow: str = "retrain") -> list[str]:
        return [sys.executable, "-m", f"flows.{flow}", "--config", str(self.config), *options]

    def prompts(self) -> list[str]:
        from monitoring import traffic

        log = str(self.folder / "traffic")
        return traffic.read_window(log, traffic.span(log))["prompt"].tolist()


MakeWorkspace = Callable[..., Workspace]


@pytest.fixture(scope="session")
def make_workspace(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, checkpoint_maker: Callable[..., Path]
) -> MakeWorkspace:
    """Return a function that makes a workspace: make_workspace(table={"key": value}, ...)."""
    from demo.helpdesk import stream
    from monitoring import traffic

    teacher = checkpoint_maker(tmp_path_factory.mktemp("teacher") / "checkpoint", seed=1)
    rows = stream(date(2025, 4, 1), date(2025, 4, 18), rows_per_day=120)
    numbers = itertools.count()

    def make(**tables: Mapping[str, Any]) -> Workspace:
        folder = tmp_path_factory.mktemp(f"workspace{next(numbers)}")
        traffic.append(str(folder / "traffic"), rows)
        settings: dict[str, dict[str, Any]] = {
            "student": {"name": "helpdesk", "base": str(tiny_checkpoint), "max_new_tokens": 8},
            "teacher": {"model": str(teacher), "top_k": 8},
            "audit": {"labels": False},  # what a random teacher answers is never the label
            "training": {"epochs": 0.5, "first_epochs": 1.0, "warmup_steps": 2, "checkpoint_steps": 5},
            "reference": {"window": REFERENCE},
            "traffic": {"window_days": 7},
            "drift": {"min_rows": 100},
        }
        for table, values in tables.items():
            settings[table] = {**settings.get(table, {}), **values}
        return Workspace(folder, write_config(folder / "redistill.toml", settings, workspace=str(folder)))

    return make


@pytest.fixture(scope="session")
def with_champion(make_workspace: MakeWorkspace) -> tuple[Workspace, dict[str, Any]]:
    """A workspace whose first champion has been made, and how that ended. Tests must leave it as it is."""
    from flows.retrain import retrain

    workspace = make_workspace()
    return workspace, retrain(str(workspace.config))


@pytest.fixture(scope="session")
def helpdesk_rows() -> Callable[[str], Any]:
    """Return a function: window of whole days -> rows of the help-desk stream."""
    from demo.helpdesk import stream

    def rows(window: str) -> Any:
        start, end = (date.fromisoformat(day) for day in window.split(".."))
        return stream(start, end, rows_per_day=120)

    return rows
