"""python -m benchmarks.probe [--config FILE --retrain ID]

How often the probe holds a retrain, by simulation with fixed seeds: where nothing was lost, and where the margin was.
With a retrain that was judged, also how often its champion and challenger agree with the teacher on the window's
held-out rows, inside and outside of what grew in each column. Prints a Markdown section for RESULTS.md.
"""

import argparse
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.machine import machine
from monitoring.probe import Agreement, Sampled, probe
from monitoring.settings import ProbeSettings

AGREEMENTS = (0.6, 0.8, 0.9, 0.95, 0.98)


def held(before: float, now: float, probes: int, seed: int, settings: ProbeSettings) -> float:
    """Return the share of probes that hold, of two samples each, where agreement was `before` and is `now`."""
    rng, rows = np.random.default_rng(seed), settings.rows
    draws = [rng.binomial(size, share, probes) for size, share in ((256, before), (rows, now), (rows, now))]
    holds = 0
    for then, drifted, rest in zip(*draws, strict=True):
        samples = Sampled(
            drifted=Agreement(agreed=drifted, rows=rows), rest=Agreement(agreed=rest, rows=rows), share=0.25
        )
        holds += not probe(samples, Agreement(agreed=then, rows=256), settings).pays
    return holds / probes


def agreements(config: Path, retrain: str) -> Iterator[str]:
    """Yield the rows of a table: champion's and challenger's agreement with the teacher, by column."""
    from flows import settings, wiring
    from monitoring.attribution import lie_in
    from monitoring.drift_report import DriftReport
    from monitoring.profile import ReferenceProfile
    from monitoring.tally import count
    from tasks import teach
    from tasks.plan import open_run
    from tasks.run import profile_folder

    chosen = settings.load(config)
    places = wiring.Places(chosen)
    run = open_run(places.runs / retrain)
    champion = run.request.champion
    if champion is None:
        raise SystemExit(f"retrain {retrain} made the first champion: there is none to compare it with")
    scores = pd.read_parquet(run.stage("judge") / "scores.parquet")
    scores = scores[scores["slice"].str.startswith("fresh")].set_index("request_id")
    student, teaching = run.stage("train") / "student", wiring.teaching(chosen, places)
    asked = Path(tempfile.mkdtemp(prefix="redistill-benchmark-")) / "asked.npy"
    texts, _ = teach.answers(scores["prompt"].tolist(), student, teaching, asked, "held-out rows")
    same = {name: scores[f"{name}_response"].str.strip() == texts for name in ("champion", "challenger")}
    features = pd.read_parquet(run.stage("watch") / "features.parquet")
    rows = pd.read_parquet(run.stage("watch") / "rows.parquet")["request_id"]
    profile = ReferenceProfile.load(profile_folder(places.runs, champion))
    report = DriftReport.model_validate_json((run.stage("watch") / "drift.json").read_text())
    tally = count(profile, features, sample_rows=1, seed=0)
    yield f"| all | 1.00 | {' | '.join(f'{seen.mean():.3f}' for seen in same.values())} | | |"
    for column in report.columns:
        if column.severity == "none":
            continue
        sides = profile.columns[column.name].counted, tally.columns[column.name].counted
        inside = lie_in(column.moved, features[column.name], profile.columns[column.name], *sides, chosen.drift.bins)
        grew = scores.index.isin(rows[inside])
        cells = [f"{seen[part].mean():.3f}" for part in (grew, ~grew) for seen in same.values()]
        yield f"| {column.name} ({column.severity}) | {grew.mean():.2f} | {' | '.join(cells)} |"


def section(given: argparse.Namespace) -> str:
    """Return the Markdown of what the probe does."""
    settings = ProbeSettings()
    lines = [
        f"## The probe, {datetime.now(UTC):%Y-%m-%d}",
        "",
        f"`python -m benchmarks.probe`, {machine('numpy', 'scipy')}",
        "",
        f"Share of {given.probes:,} probes that hold, {settings.rows} rows of the slice and as many others, a margin "
        f"of {settings.margin:g}, 256 rows at the promotion:",
        "",
        "| agreement at the promotion | nothing lost | the margin lost |",
        "|---|---|---|",
    ]
    for before in AGREEMENTS:
        shares = [held(before, before - lost, given.probes, 0, settings) for lost in (0.0, settings.margin)]
        lines.append(f"| {before:g} | {shares[0]:.3f} | {shares[1]:.3f} |")
    if given.config:
        lines += [
            "",
            "Agreement with the teacher on the window's held-out rows, inside and outside of what grew in a column:",
            "",
            "| column | rows inside | champion inside | challenger inside | champion outside | challenger outside |",
            "|---|---|---|---|---|---|",
            *agreements(given.config, given.retrain),
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.probe", description=__doc__, allow_abbrev=False)
    parser.add_argument("--probes", type=int, default=2000, metavar="N", help="of each rate")
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings file of a workspace")
    parser.add_argument("--retrain", metavar="ID", help="a judged retrain of it")
    given = parser.parse_args()
    if bool(given.config) != bool(given.retrain):
        parser.error("--config and --retrain go together")
    print(section(given))


if __name__ == "__main__":
    main()
