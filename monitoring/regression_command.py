"""Scores of two models on the same rows -> verdict: the command `python -m monitoring.regression`."""

import argparse
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from monitoring.errors import InputError
from monitoring.feature_settings import FeatureSettings
from monitoring.judging_settings import JudgingSettings
from monitoring.regression import Check, Verdict, judge

_EXIT = {"pass": 0, "fail": 1, "inconclusive": 3}
_EPILOG = """examples:
  python -m monitoring.regression champion.csv challenger.csv
  python -m monitoring.regression --kind fresh --json champion.parquet challenger.parquet
  python -m monitoring.regression --gates exact_match=0.02,refusal_rate=0.01 a.jsonl b.jsonl

SCORES_A is the champion's file, SCORES_B the challenger's: CSV, JSONL or Parquet with the same request_ids, each once.
Columns: request_id; response and target, or scores: exact_match, token_f1, negative_log_likelihood, teacher_agreement,
refusal_rate, confidence and correct (calibration_error); also slice, teacher_response, prompt, and meta_* for segments.
The first word of a slice's name is its kind (fresh, golden, teacher_errors); any other is old. On fresh slices
the challenger must be better, on the others not worse. Everything else: section [judging] of the settings file, and
its features.refusal.
exit codes: 0 pass, 1 fail, 2 wrong use or bad input, 3 inconclusive.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = _parser().parse_args(arguments)
    try:
        verdict = _verdict(given)
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if given.json:
        print(verdict.model_dump_json())
    else:
        show(verdict)
    return _EXIT[verdict.outcome]


def show(verdict: Verdict) -> None:
    """Print a verdict: its outcome, a table of checks, and what else there is to say."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False)
    for column in ("slice", "metric", "rows", "champion", "challenger", "difference", "between", "margin", "outcome"):
        table.add_column(column, overflow="fold", justify="left" if column in ("slice", "metric") else "right")
    for check in verdict.checks:
        table.add_row(*(escape(cell) for cell in _cells(check)))
    console = Console(width=None if Console().is_terminal else 150)
    console.print(f"{verdict.outcome.upper()}  {escape(verdict.reason)}\n", highlight=False, soft_wrap=True)
    console.print(table)
    for title, lines in (
        ("budget", [one.why for one in verdict.budgets]),
        ("fairness", [one.why for one in verdict.fairness]),
        ("harmed", verdict.harmed),
        ("left out", verdict.left_out),
    ):
        for line in lines:
            console.print(f"{title}: {escape(line)}", highlight=False, soft_wrap=True)


def _cells(check: Check) -> tuple[str, ...]:
    between = "" if check.lower is None or check.upper is None else f"{check.lower:+.4f} {check.upper:+.4f}"
    shown = ("" if value is None else f"{value:.4f}" for value in (check.champion, check.challenger))
    difference = "" if check.difference is None else f"{check.difference:+.4f}"
    margin = "" if check.margin is None else f"{check.margin:g}"
    outcome = check.outcome + (", harmed" if check.harmed else "")
    return (check.slice, check.metric, f"{check.rows:,}", *shown, difference, between, margin, outcome)


def _verdict(given: argparse.Namespace) -> Verdict:
    from monitoring import score_files

    settings, refusal = _settings(given)
    champion, challenger = score_files.joined(score_files.read(given.champion), score_files.read(given.challenger))
    slices, left_out = score_files.slices(champion, challenger, settings, given.kind, refusal)
    verdict = judge(slices, settings)
    return verdict.model_copy(update={"left_out": verdict.left_out + left_out})


def _settings(given: argparse.Namespace) -> tuple[JudgingSettings, str]:
    """The settings file's, and over them what the options say; and its features.refusal."""
    chosen = {key: value for key in ("gates", "superior", "alpha") if (value := getattr(given, key)) is not None}
    try:
        sections = tomllib.loads(Path(given.config).read_text("utf-8")) if given.config else {}
        refusal = FeatureSettings.model_validate(
            {key: value for key, value in _section(sections, "features").items() if key == "refusal"}
        ).refusal
        return JudgingSettings.model_validate({**_section(sections, "judging"), **chosen}), refusal
    except ValidationError as error:
        told = "; ".join(
            f"{'.'.join(map(str, each['loc'])) or 'judging'}: {_plain(each['msg'])}" for each in error.errors()
        )
        raise InputError(f"section [judging], features.refusal and the options cannot be used: {told}") from error
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"--config {given.config!r} cannot be used: {error}") from error


def _section(sections: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = sections.get(name, {})
    if not isinstance(found, dict):
        raise InputError(f"{name} is of type {type(found).__name__}, no section: write [{name}] and its settings below")
    return found


def _plain(message: str) -> str:
    return message.removeprefix("Value error, ")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m monitoring.regression",
        description="Compare two models' scores of the same rows, slice by slice: is the second nowhere worse?",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("champion", metavar="SCORES_A", help="what there is: the champion's scores")
    parser.add_argument("challenger", metavar="SCORES_B", help="what is to be judged: the challenger's scores")
    parser.add_argument("--config", metavar="FILE", help="settings file with a section [judging], and features.refusal")
    parser.add_argument("--kind", choices=("fresh", "old", "golden"), default="old",
                        help="of all rows, where there is no column slice (default: old)")  # fmt: skip
    parser.add_argument("--gates", metavar="NAME[=MARGIN],...", help="metrics that must not be worse: judging.gates")
    parser.add_argument("--superior", metavar="NAME", help="metric that must be better on fresh rows; '': none")
    parser.add_argument("--alpha", type=float, metavar="P", help="one-sided level of each comparison: judging.alpha")
    parser.add_argument("--json", action="store_true", help="print the verdict as one JSON object instead of a table")
    return parser
