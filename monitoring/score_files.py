"""Two files of scores -> the slices that both models are compared on, joined one to one by request_id.

Columns: request_id, and of each metric its scores, or the texts it is made from:

    exact_match, token_f1, refusal_rate      ready, or from `response` and `target`
    teacher_agreement                        ready, or from `response` and `teacher_response`
    negative_log_likelihood                  ready, nats a token
    calibration_error                        from `confidence` and `correct` (without it exact_match)
    judging.own_metrics                      ready, or from `prompt`, `response` and `target`

`slice` names the slice of a row, and its first word is its kind: fresh, golden, teacher_errors, or old, which any other
word is too. Each value of a `meta_*` column is a segment of all rows.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pandas as pd

from monitoring import row_metrics
from monitoring.errors import InputError
from monitoring.judging_settings import METRICS, Better, JudgingSettings
from monitoring.slices import CALIBRATION, Kind, Paired, Slice, segments_of

Floats = npt.NDArray[np.float64]

SAME = ("slice", "target", "teacher_response", "prompt")  # of a request, not of a model
SHOWN = 3


def read(path: str) -> pd.DataFrame:
    """Return a file of scores, CSV, JSONL or Parquet, under its request_ids.

    Raises InputError, naming the file, when it cannot be read, and for request_ids that are missing or come twice.
    """
    kind = Path(path).suffix.lower()
    try:
        if kind in (".jsonl", ".ndjson"):
            with open(path, encoding="utf-8") as lines:
                frame = pd.DataFrame([json.loads(line) for line in lines if line.strip()])
        elif kind in (".parquet", ".pq") or Path(path).is_dir():
            frame = pd.read_parquet(path)
        elif kind == ".csv":
            frame = pd.read_csv(path, dtype=str, keep_default_na=False)  # "NA" is an answer
        else:
            raise InputError(f"scores {path!r} are none that can be read: give a .csv, .jsonl or .parquet file")
    except InputError:
        raise
    except Exception as error:  # every format has errors of its own
        raise InputError(f"scores {path!r} cannot be read ({' '.join(str(error).split())})") from error
    if "request_id" not in frame:
        raise InputError(f"scores {path!r} have no column request_id: rows are joined by it")
    if missing := int((frame["request_id"].isna() | (frame["request_id"] == "")).sum()):
        raise InputError(f"scores {path!r}: {missing} rows have no request_id")
    ids = frame["request_id"].astype(str)
    if ids.duplicated().any():
        raise InputError(f"scores {path!r}: {_told(ids[ids.duplicated()])} twice: keep one score of each request")
    return frame.set_index(ids).drop(columns="request_id")


def joined(champion: pd.DataFrame, challenger: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return both in the same order; InputError when one lacks rows of the other, or differs in what a request is."""
    for which, here, there in (("second", champion, challenger), ("first", challenger, champion)):
        lacking = here.index.difference(there.index)
        if len(lacking):
            raise InputError(f"the {which} file lacks {_told(lacking)}: both models must be scored on the same rows")
    if champion.empty:
        raise InputError("the files have no rows")
    challenger = challenger.loc[champion.index]
    shared = [name for name in champion if name in challenger and (name in SAME or str(name).startswith("meta_"))]
    for name in shared:
        before, after = champion[name], challenger[name]
        unequal = ~((before == after) | (before.isna() & after.isna()))
        if unequal.any():
            raise InputError(
                f"column {name} is not the same in both files for {_told(champion.index[unequal])}: these are not "
                "scores of the same requests"
            )
    return champion, challenger


def slices(
    champion: pd.DataFrame, challenger: pd.DataFrame, settings: JudgingSettings, kind: Kind = "old"
) -> tuple[dict[str, Slice], list[str]]:
    """Return the slices of two joined files, all rows one of `kind` without column `slice`; and what makes no segments.

    Raises InputError when there is no metric, and for scores that are missing or no numbers.
    """
    scores = paired_scores(champion, challenger, settings)
    if "slice" not in champion:
        parts = {"all rows": Slice(kind, scores)}
    else:
        if missing := int((champion["slice"].isna() | (champion["slice"] == "")).sum()):
            raise InputError(f"{missing} rows have no slice: name one for each row, or leave the column out")
        names = champion["slice"].astype(str).to_numpy(object)
        parts = {
            name: Slice(_kind(name), {metric: paired.of(names == name) for metric, paired in scores.items()})
            for name in dict.fromkeys(names)
        }
    meta = {str(name): champion[name].to_numpy(object) for name in champion if str(name).startswith("meta_")}
    segments, left_out = segments_of(scores, meta)
    if twice := sorted(parts.keys() & segments.keys()):
        raise InputError(f"slice {twice[0]!r} has the name of a segment: call it otherwise")
    return parts | segments, left_out


def paired_scores(champion: pd.DataFrame, challenger: pd.DataFrame, settings: JudgingSettings) -> dict[str, Paired]:
    """Return the scores of all rows in each metric that both files have, or have the texts for."""
    sides = [_scores(champion, settings, "first"), _scores(challenger, settings, "second")]
    for lacks, mine, other in (("second", sides[0], sides[1]), ("first", sides[1], sides[0])):
        if lacking := sorted(mine.keys() - other.keys()):
            raise InputError(f"the {lacks} file has nothing to make {', '.join(lacking)} of, which the other has")
    if not sides[0]:
        raise InputError(f"the files have no metric: give columns of {', '.join(METRICS)}, or response and target")
    return {
        metric: Paired(scores, sides[1][metric][0], better, row_metrics.own_bound(metric) if better else None)
        for metric, (scores, better) in sides[0].items()
    }


def _scores(frame: pd.DataFrame, settings: JudgingSettings, which: str) -> dict[str, tuple[Floats, Better | None]]:
    """Each metric's scores of one file, and of one's own metrics which direction is better."""
    made: dict[str, tuple[Floats, Better | None]] = {}
    texts = {name: _texts(frame[name]) for name in (*SAME, "response") if name in frame}
    from_texts: Mapping[str, tuple[Callable[..., Floats], tuple[str, ...]]] = {
        "exact_match": (row_metrics.exact_match, ("response", "target")),
        "token_f1": (row_metrics.token_f1, ("response", "target")),
        "refusal_rate": (row_metrics.refusal_rate, ("response",)),
        "teacher_agreement": (row_metrics.exact_match, ("response", "teacher_response")),
    }
    for metric in (name for name in METRICS if name not in (CALIBRATION, "lm_eval")):
        function, wanted = from_texts.get(metric, (None, ()))
        if metric in frame:
            made[metric] = _numbers(frame[metric], which), None
        elif function is not None and all(name in texts for name in wanted):
            made[metric] = function(*(texts[name] for name in wanted)), None
    for metric in settings.own_metrics:
        if metric in frame:
            made[metric] = _numbers(frame[metric], which), row_metrics.own_better(metric)
        elif all(name in texts for name in ("prompt", "response", "target")):
            made[metric] = row_metrics.own_metric(metric, texts["prompt"], texts["response"], texts["target"])
    if "confidence" in frame and ("correct" in frame or "exact_match" in made):
        correct = _numbers(frame["correct"], which) if "correct" in frame else made["exact_match"][0]
        made[CALIBRATION] = np.stack([_numbers(frame["confidence"], which), correct], axis=1), None
    return made


def _kind(name: str) -> Kind:
    word = (name.split() or [""])[0]
    return cast(Kind, word) if word in ("fresh", "golden", "teacher_errors") else "old"


def _texts(column: pd.Series) -> list[str]:
    return ["" if pd.isna(value) else str(value) for value in column]


def _numbers(column: pd.Series, which: str) -> Floats:
    """A column as numbers; true and false count as 1 and 0."""
    words = {"true": 1.0, "false": 0.0}
    plain = column.map(lambda value: words.get(value.strip().lower(), value) if isinstance(value, str) else value)
    found = pd.to_numeric(plain, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    if bad := int((~np.isfinite(found)).sum()):
        raise InputError(f"column {column.name} of the {which} file: {bad} of {len(found)} rows hold no finite number")
    return np.asarray(found, np.float64)


def _told(ids: "pd.Series | pd.Index") -> str:
    shown = ", ".join(str(each) for each in ids[:SHOWN])
    return f"{len(ids)} request_ids ({shown}{', ...' if len(ids) > SHOWN else ''})"
