"""What the demos leave in a workspace: a settings file that reads back, and a log that is filled once."""

import tomllib
from datetime import date
from pathlib import Path

import pytest

from demo.helpdesk import stream
from demo.workspace import Value, append_missing, writable, write_config
from monitoring.errors import InputError


def test_settings_read_back_as_they_were(tmp_path: Path) -> None:
    tables: dict[str, dict[str, Value]] = {
        "student": {"name": "a", "base": '/odd "quoted" \\ päth\x7f\n', "n": 3},
        "training": {"lr": 1e-5, "on": True},
    }
    file = write_config(tmp_path / "new" / "redistill.toml", tables, workspace="/w")
    assert tomllib.loads(file.read_text(encoding="utf-8")) == {"workspace": "/w", **tables}
    assert [path.name for path in file.parent.iterdir()] == ["redistill.toml"]


def test_only_missing_rows_are_appended(tmp_path: Path) -> None:
    from monitoring.traffic import read_window, span

    log = tmp_path / "traffic"
    first, all_of_it = stream(date(2025, 4, 1), date(2025, 4, 3), 20), stream(date(2025, 4, 1), date(2025, 4, 5), 20)
    assert append_missing(log, first) == len(first)
    assert append_missing(log, all_of_it) == len(all_of_it) - len(first)
    assert append_missing(log, all_of_it) == 0
    assert read_window(str(log), span(str(log))).request_id.tolist() == all_of_it.request_id.tolist()


def test_a_workspace_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        writable(tmp_path / "file" / "w")
