"""python -m benchmarks.false_alarms [--rows N ...] [--reference N] [--years N] [--windows N]

How often traffic that does not drift raises an alarm, by simulation: reference and windows are drawn from one world of
thirteen columns, with fixed seeds. First single windows, reference and window both new each time: the share in which
any column, whole rows, or the report as a whole reach a severity. Then years of daily windows against one frozen
reference, through the policy and its history: the windows of a year share the chance that made their reference, so
their alarms come in clumps. Prints a Markdown section for RESULTS.md.
"""

import argparse
import sys
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd

from benchmarks.machine import machine
from monitoring.drift import compare, compare_rows
from monitoring.drift_report import DriftReport
from monitoring.history import History, Moment, Observation
from monitoring.policy import decide, observe
from monitoring.profile import ReferenceProfile
from monitoring.settings import DriftSettings, PolicySettings
from monitoring.tally import count

DAYS = 365
SAMPLE = 300  # rows of either side that MMD sees; its level is the same at any number
START = datetime(2026, 1, 1, tzinfo=UTC)
POLICIES = {
    "info": PolicySettings(severity="info"),
    "info, 2 of 3": PolicySettings(severity="info", k=2, n=3),
    "warning": PolicySettings(),
    "warning, 2 of 3": PolicySettings(k=2, n=3),
}
TEN = np.array([f"c{i}" for i in range(10)], object)
MANY = np.array([f"m{i}" for i in range(300)], object)
FALLING = np.cumsum(1 / np.arange(1, 301))  # Zipf's law


def world(rng: np.random.Generator, rows: int) -> pd.DataFrame:
    """Return thirteen columns: normal, two of them correlated, skewed, heavy-tailed, discrete, tied, 30 % missing,
    of ten, two and three hundred categories."""
    normal = rng.normal(size=(rows, 5))
    normal[:, 1] = 0.8 * normal[:, 0] + 0.6 * normal[:, 1]
    columns: dict[str, object] = {f"normal_{i}": normal[:, i] for i in range(5)}
    flags = TEN[(rng.random(rows) < 0.1).astype(int)]
    flags[rng.random(rows) < 0.3] = None
    return pd.DataFrame(
        columns
        | {
            "skewed": rng.lognormal(size=rows),
            "heavy": rng.standard_t(2, rows),
            "discrete": rng.poisson(2, rows).astype(float),
            "tied": np.where(rng.random(rows) < 0.8, 0.0, rng.exponential(size=rows)),
            "holes": np.where(rng.random(rows) < 0.3, np.nan, rng.normal(size=rows)),
            "ten": TEN[rng.integers(0, 10, rows)],
            "flag with holes": flags,
            "many": MANY[np.searchsorted(FALLING, rng.random(rows) * FALLING[-1])],
        }
    )


def freeze(frame: pd.DataFrame, sample_rows: int) -> ReferenceProfile:
    """Return the reference profile of a frame."""
    return ReferenceProfile.build(
        frame, window="then", model_version="1", max_categories=50, sample_rows=sample_rows, seed=0
    )


def windows(reference: int, rows: int, repetitions: int, seed: int, settings: DriftSettings) -> pd.DataFrame:
    """Return what windows without drift show, each against a reference of its own: a row a window, a column a test."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(repetitions):
        profile = freeze(world(rng, reference), SAMPLE)
        tally = count(profile, world(rng, rows), sample_rows=SAMPLE, seed=0)
        holm, bh = (
            compare(profile, tally, "now", settings.model_copy(update={"correction": name})) for name in ("holm", "bh")
        )
        report = compare_rows(profile, tally.sample, holm, settings)
        found.append(
            {
                "columns, Holm": holm.severity != "none",
                "columns, BH": bh.severity != "none",
                "whole rows": report.rows_severity != "none",
                "report": report.severity != "none",
                "report at warning": report.drifted,
            }
        )
    return pd.DataFrame(found)


def year(
    reference: int, rows: int, seed: int, settings: DriftSettings, sample: int = 0, days: int = DAYS
) -> pd.DataFrame:
    """Return what daily windows without drift trigger against one frozen reference: a row a day, a column a policy.

    With a `sample`, so many rows of either side are compared as a whole besides.
    """
    rng = np.random.default_rng(seed)
    profile = freeze(world(rng, reference), max(sample, 100))
    earlier: dict[str, list[Observation]] = {name: [] for name in POLICIES}
    for day in range(days):
        begin, end = START + timedelta(days=day), START + timedelta(days=day + 1)
        report = _of_a_day(profile, world(rng, rows), f"{begin.date()}..{end.date()}", settings, sample)
        now = Moment(time=end, champion="1", champion_digest="champion", window_digest=str(day), log_rows=rows * day)
        for name, policy in POLICIES.items():
            decision = decide(report, settings, policy, now, History(earlier=tuple(earlier[name])))
            earlier[name].append(observe(report, now, decision))
    return pd.DataFrame({name: [seen.trigger for seen in before] for name, before in earlier.items()})


def _of_a_day(
    profile: ReferenceProfile, now: pd.DataFrame, window: str, settings: DriftSettings, sample: int
) -> DriftReport:
    tally = count(profile, now, sample_rows=sample, seed=0)
    report = compare(profile, tally, window, settings)
    return compare_rows(profile, tally.sample, report, settings) if sample else report


def table_of_windows(reference: int, sizes: list[int], repetitions: int, settings: DriftSettings) -> list[str]:
    """Return the Markdown of the share of single windows with an alarm."""
    lines: list[str] = []
    for rows in sizes:
        print(f"{repetitions} windows of {rows:,} rows ...", file=sys.stderr)
        shown = windows(reference, rows, repetitions, rows, settings)
        if not lines:
            lines = [f"| rows of a window | {' | '.join(map(str, shown))} |", "|---|" + "---|" * len(shown.columns)]
        lines.append(f"| {rows:,} | {' | '.join(f'{share:.4f}' for share in shown.mean())} |")
    return lines


def table_of_years(reference: int, sizes: list[int], years: int, settings: DriftSettings) -> list[str]:
    """Return the Markdown of alarms a year, the smallest windows once more with whole rows compared."""
    lines = [
        "| rows a day | " + " | ".join(POLICIES) + " |",
        "|---|" + "---|" * len(POLICIES),
    ]
    for rows, sample in [*((rows, 0) for rows in sizes), (min(sizes), SAMPLE)]:
        told = f"{rows:,}, whole rows too" if sample else f"{rows:,}"
        number = max(years // 2, 1) if sample else years
        print(f"{number} years of {told} (rows a day) ...", file=sys.stderr)
        seeds = range(rows, rows + number)
        alarms = pd.DataFrame([year(reference, rows, seed, settings, sample).sum() for seed in seeds])
        cells = [f"{alarms[name].mean():.2f}; {(alarms[name] > 0).mean():.2f}; {alarms[name].max()}" for name in alarms]
        lines.append(f"| {told} ({number} years) | {' | '.join(cells)} |")
    return lines


def section(given: argparse.Namespace) -> str:
    """Return the Markdown of the simulated rates."""
    settings = DriftSettings()
    nominal = f"info {settings.info_alpha:g}, warning {settings.alpha:g}"
    yearly = f"info {DAYS * settings.info_alpha:g}, warning {DAYS * settings.alpha:g}"
    return "\n".join(
        [
            f"## False alarms without drift, {datetime.now(UTC):%Y-%m-%d}",
            "",
            f"`python -m benchmarks.false_alarms`, {machine('numpy', 'scipy', 'pandas')}",
            "",
            f"Thirteen columns of mixed kinds, references of {given.reference:,} rows. Share of windows at info or "
            f"above (nominal: {nominal}), each of {given.windows} windows against a reference of its own:",
            "",
            *table_of_windows(given.reference, given.rows, given.windows, settings),
            "",
            f"Alarms in a year of {DAYS} daily windows against one frozen reference, by the policy: mean; share of "
            f"years with any; most in one year (nominal mean: {yearly}):",
            "",
            *table_of_years(given.reference, given.rows, given.years, settings),
            "",
        ]
    )


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.false_alarms", description=__doc__, allow_abbrev=False)
    parser.add_argument("--rows", type=int, nargs="+", default=[300, 1000, 10_000], metavar="N", help="of a window")
    parser.add_argument("--reference", type=int, default=5000, metavar="N", help="rows of a reference")
    parser.add_argument("--years", type=int, default=12, metavar="N", help="years of each size, a reference a year")
    parser.add_argument("--windows", type=int, default=400, metavar="N", help="single windows of each size")
    print(section(parser.parse_args()))


if __name__ == "__main__":
    main()
