"""python -m benchmarks.windows --config FILE [--rows N] [--quiet N] [--later N] START..END ...

Draws windows of held-out rows at random from each stretch of time and compares them with the champion's profile: how
often each severity comes out, and which columns drift. The first stretch is the profile's own: its windows are quiet,
drawn from rows that are not in the profile. Prints a Markdown table for RESULTS.md.
"""

import argparse
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from flows import settings, wiring
from monitoring import traffic
from monitoring.drift import compare
from monitoring.drift_report import SEVERITIES
from monitoring.features import features
from monitoring.profile import ReferenceProfile
from monitoring.text import load_tokenizer
from monitoring.traffic import Window
from tasks import watch
from tasks.plan import current_champion
from tasks.run import profile_folder


@dataclass(frozen=True)
class Seen:
    """What the windows of a stretch showed: windows of each severity, and of each drifted column."""

    stretch: str
    windows: int
    severities: Counter[str]
    columns: Counter[str]

    @property
    def alarms(self) -> int:
        """Windows at warning or above."""
        return self.severities["warning"] + self.severities["critical"]


def draw(config: Path, stretches: list[str], *, rows: int, quiet: int, later: int) -> list[Seen]:
    """Return what random windows of `rows` rows show, `quiet` of the first stretch and `later` of each other one."""
    chosen = settings.load(config)
    places, watching = wiring.Places(chosen), wiring.watching(chosen)
    champion = current_champion(wiring.registry(chosen, places), places.workspace / "checkpoints")
    if champion is None:
        raise SystemExit(f"{config} has no champion yet: python -m flows.retrain --config {config}")
    profile = ReferenceProfile.load(profile_folder(places.runs, champion))
    found = []
    for number, stretch in enumerate(stretches):
        frame = traffic.read_window(places.log, Window.parse(stretch))
        least = chosen.traffic.held_out_from if number else chosen.traffic.profile_until
        frame = frame[traffic.row_hash(frame["request_id"]) >= least]
        answered = watch.answered(frame, Path(champion.checkpoint), watching, stretch, None)
        pool = features(answered, chosen.features, load_tokenizer(champion.checkpoint))
        found.append(_seen(stretch, profile, pool, rows, later if number else quiet, chosen))
    return found


def _seen(
    stretch: str, profile: ReferenceProfile, pool: pd.DataFrame, rows: int, windows: int, chosen: settings.Settings
) -> Seen:
    severities: Counter[str] = Counter()
    columns: Counter[str] = Counter()
    for seed in range(windows):
        report = compare(profile, pool.sample(rows, random_state=seed), stretch, chosen.drift)
        severities[report.severity] += 1
        columns.update(report.drifted_columns)
    return Seen(stretch, windows, severities, columns)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.windows", description=__doc__, allow_abbrev=False)
    parser.add_argument("stretches", metavar="START..END", nargs="+")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=500, help="rows of a window")
    parser.add_argument("--quiet", type=int, default=200, help="windows of the first stretch")
    parser.add_argument("--later", type=int, default=60, help="windows of each other stretch")
    given = parser.parse_args()
    found = draw(given.config, given.stretches, rows=given.rows, quiet=given.quiet, later=given.later)
    print(f"| windows of {given.rows} rows from | windows | {' | '.join(SEVERITIES)} | drifted columns |")
    print("|---|---|" + "---|" * len(SEVERITIES) + "---|")
    for seen in found:
        cells = " | ".join(str(seen.severities[severity]) for severity in SEVERITIES)
        columns = ", ".join(f"{name} {count}" for name, count in seen.columns.most_common())
        print(f"| {seen.stretch} | {seen.windows} | {cells} | {columns} |")


if __name__ == "__main__":
    main()
