"""Real input: arXiv titles as a request log, a teacher trained on their categories, a base and a settings file.

    python -m demo.arxiv ../shared/data/arxiv_titles_2008_2016.csv.gz --workspace DIR

Title in, category out as text. All titles go into the log. Those that may be trained on (crc32(arxiv_id) % 100 < 60)
go in without their category, which only the teacher's training sees; the held-out ones bring it as the reference.
A second run adds what is missing and trains nothing again.
"""

from __future__ import annotations

import argparse
import gzip
import os
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from demo.workspace import BaseRecipe, TeacherRecipe, append_missing, writable, write_config
from distill.errors import Failure as LearningFailure
from distill.errors import InputError as LearningInputError
from monitoring.errors import Failure, InputError

if TYPE_CHECKING:
    import pandas as pd

Progress = Callable[[int, int], None]  # (steps done, steps in all)

COLUMNS = ["arxiv_id", "date", "primary_cat", "title"]
HELD_OUT_FROM = 60
REFERENCE_END = "2014-01-01"  # the first champion knows what came before
REFERENCE_WINDOW, PROFILE_WINDOW = f"2008-01-01..{REFERENCE_END}", f"2012-01-01..{REFERENCE_END}"
DRIFTED_WINDOW = "2016-01-01..2017-01-01"

VOCABULARY = 2048
TEACHER = TeacherRecipe(width=192, layers=3, heads=6, steps=800, batch_size=64, learning_rate=1.5e-3, seed=0)
BASE = BaseRecipe(width=96, layers=2, heads=3, seed=0)
BATCH, ROW_TOKENS = 64, 24  # titles in a step; tokens of one with its category, on average
FIRST_STEPS, STEPS, REPLAY_SHARE = 600, 250, 1 / 3


def prepare(file: Path, workspace: Path, progress: Progress | None = None) -> Path:
    """Fill the workspace with log, teacher, base and settings, whichever are missing; return the settings file.

    `progress` is told of the teacher's training. Raises InputError for a file that is no such table and for a
    workspace that cannot be written.
    """
    from demo.teacher import make_student, train_teacher
    from demo.tokenizer import train_tokenizer

    rows = read_titles(file)
    workspace = writable(workspace)
    append_missing(workspace / "traffic", request_log(rows))
    learnt = rows[rows["hash"] < HELD_OUT_FROM]
    old = rows.loc[rows["date"] < REFERENCE_END, "title"]
    tokenizer = train_tokenizer(old.tolist(), rows["primary_cat"].unique(), VOCABULARY)
    titles, categories = learnt["title"].tolist(), learnt["primary_cat"].tolist()
    teacher = train_teacher(workspace / "teacher", tokenizer, titles, categories, progress=progress, **TEACHER)
    base = make_student(workspace / "base", tokenizer, **BASE)
    return _write_settings(workspace, learnt, teacher, base)


def read_titles(file: Path) -> pd.DataFrame:
    """Return the table of titles, with crc32(arxiv_id) % 100 as `hash`; InputError when the file is no such table."""
    import pandas as pd

    try:
        rows = pd.read_csv(file, dtype="string", keep_default_na=False)
    except FileNotFoundError as error:
        raise InputError(f"{file}: there is no such file; name the CSV of arXiv titles") from error
    except (OSError, EOFError, zlib.error, gzip.BadGzipFile, ValueError) as error:  # ValueError: no UTF-8, no CSV
        raise InputError(f"{file}: cannot be read as CSV ({error}); copy it again") from error
    if missing := [name for name in COLUMNS if name not in rows.columns]:
        raise InputError(
            f"{file}: column {', '.join(missing)} is missing; needed are {', '.join(COLUMNS)}, "
            f"found {', '.join(map(str, rows.columns[:8]))}"
        )
    if rows.empty:
        raise InputError(f"{file}: holds no row; name the CSV of arXiv titles")
    dates = pd.to_datetime(rows["date"], format="%Y-%m-%d", errors="coerce")
    if dates.isna().any():
        at = int(dates.isna().to_numpy().argmax())
        raise InputError(f"{file}: date {rows['date'].iloc[at]!r} in line {at + 2} is no YYYY-MM-DD; correct it")
    return rows.assign(hash=[zlib.crc32(name.encode()) % 100 for name in rows["arxiv_id"]])


def request_log(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the titles as rows of the request log; only held-out ones have a reference."""
    import pandas as pd

    return pd.DataFrame(
        {
            "request_id": rows["arxiv_id"],
            "timestamp": pd.to_datetime(rows["date"], format="%Y-%m-%d", utc=True),
            "prompt": rows["title"],
            "reference": rows["primary_cat"].where(rows["hash"] >= HELD_OUT_FROM),
        }
    )


def _write_settings(workspace: Path, learnt: pd.DataFrame, teacher: Path, base: Path) -> Path:
    first_rows = int((learnt["date"] < REFERENCE_END).sum())
    window_start, window_end = DRIFTED_WINDOW.split("..")
    window_rows = int(((learnt["date"] >= window_start) & (learnt["date"] < window_end)).sum())
    return write_config(
        workspace / "redistill.toml",
        {
            "student": {"name": "arxiv", "base": str(base), "max_prompt_tokens": 128, "max_new_tokens": 8},
            "teacher": {"model": str(teacher)},
            "traffic": {"window_days": 366.0, "held_out_from": HELD_OUT_FROM},
            "reference": {"window": REFERENCE_WINDOW, "profile": PROFILE_WINDOW},
            # A field's mix of topics moves slowly: 2016 is surely past a PSI of 0.05, and only about at the usual 0.1.
            # At a KS distance of 0.1, 1 % of quiet windows of 500 titles alarmed; 2016 reaches 0.13.
            "drift": {"psi_bound": 0.05, "ks_distance": 0.13},
            "training": {
                "tokens_per_step": BATCH * ROW_TOKENS,
                "first_epochs": _epochs(FIRST_STEPS, first_rows),
                "first_learning_rate": 3e-3,
                "epochs": _epochs(STEPS, window_rows / (1 - REPLAY_SHARE)),
                "learning_rate": 2e-3,
                "replay_share": REPLAY_SHARE,
            },
        },
        workspace=str(workspace),
    )


def _epochs(steps: int, rows: float) -> float:
    return round(steps * BATCH / max(rows, 1.0), 3)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 2 bad input, 1 failure."""
    parser = argparse.ArgumentParser(prog="python -m demo.arxiv", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", type=Path, help=f"CSV, may be compressed, with the columns {', '.join(COLUMNS)}")
    parser.add_argument("--workspace", type=Path, required=True, help="folder for log, models and settings")
    given = parser.parse_args(arguments)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: waiting threads leave the cores to others
    try:
        config = _prepare_with_bar(given.file, given.workspace)
    except (InputError, LearningInputError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (Failure, LearningFailure) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    folder = config.parent
    print(f"request log  {folder / 'traffic'}\nteacher      {folder / 'teacher'}\nbase         {folder / 'base'}")
    print(f"settings     {config}\n\nnext, the first champion and then its successor:")
    print(f"  python -m flows.retrain --config {config}")
    print(f"  python -m flows.retrain --config {config} --window {DRIFTED_WINDOW}")
    return 0


def _prepare_with_bar(file: Path, workspace: Path) -> Path:
    from tqdm import tqdm

    with tqdm(desc="teacher", unit="step", delay=1, disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return prepare(file, workspace, progress)


if __name__ == "__main__":
    sys.exit(main())
