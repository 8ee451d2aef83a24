"""What the demos leave in a workspace besides models: the request log, and the settings file that names it all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypedDict

from monitoring.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

Value: TypeAlias = str | int | float | bool


class BaseRecipe(TypedDict):
    """The shape and seed of a random model."""

    width: int
    layers: int
    heads: int
    seed: int


class TeacherRecipe(BaseRecipe):
    """And how it is trained."""

    steps: int
    batch_size: int
    learning_rate: float


def writable(workspace: Path) -> Path:
    """Return the workspace's absolute path, made if need be; InputError when that cannot be."""
    try:
        workspace.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"workspace {workspace}: cannot be made ({error}); name another folder") from error
    return workspace.resolve()


def append_missing(log: Path, frame: pd.DataFrame) -> int:
    """Append those rows that the log does not have yet, in one commit; return how many."""
    from monitoring.traffic import append, read_window, span

    if any(log.glob("_commits/*.json")):
        known = read_window(str(log), span(str(log)))["request_id"]
        frame = frame[~frame["request_id"].isin(known)]
    if len(frame):
        append(str(log), frame)
    return len(frame)


def write_config(file: Path, tables: Mapping[str, Mapping[str, Value]], **top: Value) -> Path:
    """Write a TOML file, whole or not at all; `top` stands before the tables. Returns the file."""
    lines = [f"{key} = {_literal(value)}" for key, value in top.items()]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {_literal(value)}" for key, value in table.items())]
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    unfinished.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(unfinished, file)
    return file


def _literal(value: Value) -> str:
    # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
    return json.dumps(value).replace("\x7f", "\\u007f")
