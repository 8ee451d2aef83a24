"""Two files of scores -> the slices that both models are compared on, joined one to one by request_id.

Columns: request_id, and of each metric its scores, or the texts it is made from:

    exact_match, token_f1, refusal_rate      ready, or from `response` and `target`
    teacher_agreement                        ready, or from `response` and `teacher_response`
    negative_log_likelihood                  ready, nats a token
    calibration_error                        from `confidence` and `correct` (without it exact_match)
    judging.own_metrics                      ready, or from `prompt`, `response` and `target`

`slice` names the slice of a row, and its first word is its kind: fresh, golden, teacher_errors, or old, which any other
word is too ("teacher errors", as a retrain calls them, are teacher_errors). Each value of a `meta_*` column is a
segment of all rows. These columns and `target`, `teacher_response` and `prompt` are of a request: one file may have
them for both.

A row without a target, null or empty, is left out where scores are made from targets, and counted; so is one without a
`teacher_response` of teacher_agreement. A null `response` or `prompt` is refused; an empty one is a text.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pandas as pd

from monitoring import row_metrics
from monitoring.errors import InputError
from monitoring.feature_settings import REFUSAL
from monitoring.judging_settings import METRICS, Better, JudgingSettings
from monitoring.slices import AGREEMENT, CALIBRATION, Kind, Paired, Slice, segments_of

Floats = npt.NDArray[np.float64]

SAME = ("slice", "target", "teacher_response", "prompt")  # of a request, not of a model
SHOWN = 3


def read(path: str) -> pd.DataFrame:
    """Return a file of scores, CSV, JSONL or Parquet, under its request_ids.

    Raises InputError, naming the file, when it cannot be read, for request_ids that are missing or come twice, and
    where something that is said of a request is a list.
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
    for name in (name for name in frame if name == "request_id" or _is_of_requests(name)):
        if lists := sum(map(pd.api.types.is_list_like, frame[name])):
            raise InputError(f"scores {path!r}: column {name} holds lists in {lists} rows: give one value for each row")
    if missing := int((frame["request_id"].isna() | (frame["request_id"] == "")).sum()):
        raise InputError(f"scores {path!r}: {missing} rows have no request_id")
    ids = frame["request_id"].astype(str)
    if ids.duplicated().any():
        raise InputError(f"scores {path!r}: {_told(ids[ids.duplicated()])} twice: keep one score of each request")
    return frame.set_index(ids).drop(columns="request_id")


def joined(champion: pd.DataFrame, challenger: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return both in the same order, each with what either says of the requests.

    InputError when one lacks rows of the other, or differs in what a request is.
    """
    for which, here, there in (("second", champion, challenger), ("first", challenger, champion)):
        lacking = here.index.difference(there.index)
        if len(lacking):
            raise InputError(f"the {which} file lacks {_told(lacking)}: both models must be scored on the same rows")
    if champion.empty:
        raise InputError("the files have no rows")
    challenger = challenger.loc[champion.index]
    for name in (name for name in champion if name in challenger and _is_of_requests(name)):
        before, after = _plain(champion[name]), _plain(challenger[name])
        unequal = ~((before == after) | (before.isna() & after.isna()))
        if unequal.any():
            raise InputError(
                f"column {name} is not the same in both files for {_told(champion.index[unequal])}: these are not "
                "scores of the same requests"
            )
    return _with_missing(champion, challenger), _with_missing(challenger, champion)


def slices(
    champion: pd.DataFrame,
    challenger: pd.DataFrame,
    settings: JudgingSettings,
    kind: Kind = "old",
    refusal: str = REFUSAL,
) -> tuple[dict[str, Slice], list[str]]:
    """Return the slices of two joined files, all rows one of `kind` without column `slice`; and what was left out.

    refusal: pattern of `features.refusal`. Raises InputError when there is no metric, and for scores and answers that
    are missing or no numbers.
    """
    champion, challenger, untold = _with_targets(champion, challenger, settings)
    scores = paired_scores(champion, challenger, settings, refusal)
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
    segments, left_out = segments_of(scores, meta, settings)
    if twice := sorted(parts.keys() & segments.keys()):
        raise InputError(f"slice {twice[0]!r} has the name of a segment: call it otherwise")
    if AGREEMENT in scores and (unknown := int(np.isnan(np.asarray(scores[AGREEMENT].champion)).sum())):
        untold.append(f"{AGREEMENT}: {unknown} of {len(champion)} rows have no teacher_response")
    found = {name: _known(part, settings) for name, part in (parts | segments).items()}
    return found, untold + left_out


def paired_scores(
    champion: pd.DataFrame, challenger: pd.DataFrame, settings: JudgingSettings, refusal: str = REFUSAL
) -> dict[str, Paired]:
    """Return the scores of all rows in each metric that both files have, or have the texts for.

    teacher_agreement is NaN where nobody knows what the teacher says.
    """
    sides = [_scores(champion, settings, "first", refusal), _scores(challenger, settings, "second", refusal)]
    for lacks, mine, other in (("second", sides[0], sides[1]), ("first", sides[1], sides[0])):
        if lacking := sorted(mine.keys() - other.keys()):
            raise InputError(f"the {lacks} file has nothing to make {', '.join(lacking)} of, which the other has")
    if not sides[0]:
        raise InputError(f"the files have no metric: give columns of {', '.join(METRICS)}, or response and target")
    return {
        metric: Paired(scores, sides[1][metric][0], better, row_metrics.own_bound(metric) if better else None)
        for metric, (scores, better) in sides[0].items()
    }


def _scores(
    frame: pd.DataFrame, settings: JudgingSettings, which: str, refusal: str
) -> dict[str, tuple[Floats, Better | None]]:
    """Each metric's scores of one file, and of one's own metrics which direction is better."""
    made: dict[str, tuple[Floats, Better | None]] = {}
    texts = {name for name in (*SAME, "response") if name in frame}

    def text(name: str) -> list[str]:
        return _texts(frame[name], which)

    def agreement(responses: list[str]) -> Floats:
        teacher = frame["teacher_response"]
        same = row_metrics.exact_match(responses, ["" if pd.isna(value) else str(value) for value in teacher])
        return np.where(_is_empty(teacher), np.nan, same)

    from_texts: Mapping[str, tuple[Callable[..., Floats], tuple[str, ...]]] = {
        "exact_match": (row_metrics.exact_match, ("response", "target")),
        "token_f1": (row_metrics.token_f1, ("response", "target")),
        "refusal_rate": (partial(row_metrics.refusal_rate, pattern=refusal), ("response",)),
    }
    for metric in (name for name in METRICS if name not in (CALIBRATION, "lm_eval")):
        function, wanted = from_texts.get(metric, (None, ()))
        if metric in frame:
            made[metric] = _numbers(frame[metric], which), None
        elif function is not None and all(name in texts for name in wanted):
            made[metric] = function(*(text(name) for name in wanted)), None
        elif metric == AGREEMENT and {"response", "teacher_response"} <= texts:
            made[metric] = agreement(text("response")), None
    for metric in settings.own_metrics:
        if metric in frame:
            made[metric] = _numbers(frame[metric], which), row_metrics.own_better(metric)
        elif all(name in texts for name in ("prompt", "response", "target")):
            made[metric] = row_metrics.own_metric(metric, text("prompt"), text("response"), text("target"))
    if "confidence" in frame and ("correct" in frame or "exact_match" in made):
        correct = _numbers(frame["correct"], which) if "correct" in frame else made["exact_match"][0]
        made[CALIBRATION] = np.stack([_numbers(frame["confidence"], which), correct], axis=1), None
    return made


def _kind(name: str) -> Kind:
    word = "teacher_errors" if name == "teacher errors" else (name.split() or [""])[0]
    return cast(Kind, word) if word in ("fresh", "golden", "teacher_errors") else "old"


def _is_of_requests(name: object) -> bool:
    return name in SAME or str(name).startswith("meta_")


def _plain(column: pd.Series) -> pd.Series:
    """A column whose missing values are NaN: pd.NA is neither equal to a value nor unequal."""
    return pd.Series(column.astype(object).where(column.notna(), np.nan))


def _with_missing(mine: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """One file with what only the other says of the requests."""
    return mine.assign(**{str(name): other[name] for name in other if name not in mine and _is_of_requests(name)})


def _with_targets(
    champion: pd.DataFrame, challenger: pd.DataFrame, settings: JudgingSettings
) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """The rows with a target, where scores are made from targets, and how many have none."""
    made = [
        name
        for name in ("exact_match", "token_f1", *settings.own_metrics)
        if not (name in champion and name in challenger)
    ]
    if not made or "target" not in champion or not ("response" in champion and "response" in challenger):
        return champion, challenger, []
    empty = _is_empty(champion["target"])
    if not empty.any():
        return champion, challenger, []
    if empty.all():
        if asked := [name for name in made if name in (*settings.margins, settings.superior)]:
            raise InputError(f"no row has a target, and {', '.join(asked)} cannot be made without: give targets")
        return champion.drop(columns="target"), challenger.drop(columns="target"), ["target: no row has one"]
    told = f"{int(empty.sum())} of {len(champion)} rows have no target, and no metric of them counts"
    return champion[~empty], challenger[~empty], [told]


def _known(part: Slice, settings: JudgingSettings) -> Slice:
    """A slice whose teacher_agreement has the rows on which it is known; without any it is there only as a gate."""
    paired = part.scores.get(AGREEMENT)
    if paired is None:
        return part
    known = ~np.isnan(np.asarray(paired.champion))
    rest = {metric: each for metric, each in part.scores.items() if metric != AGREEMENT}
    kept = {AGREEMENT: paired.of(known)} if known.any() or AGREEMENT in settings.margins else {}
    return replace(part, scores=rest | kept)


def _is_empty(column: pd.Series) -> npt.NDArray[np.bool_]:
    return np.array([bool(pd.isna(value)) or not str(value).strip() for value in column], bool)


def _texts(column: pd.Series, which: str) -> list[str]:
    if bad := int(column.isna().sum()):
        raise InputError(f"column {column.name} of the {which} file: {bad} of {len(column)} rows hold no text")
    return [str(value) for value in column]


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
