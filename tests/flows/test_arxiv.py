"""The loop on real, dated traffic: arXiv titles of 2008-2016, from unlabelled titles and the teacher alone."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks import windows
from flows import settings, wiring
from monitoring import policy, traffic
from monitoring.traffic import Window
from tasks import watch
from tasks.plan import current_champion

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(3600)]

QUIET, DRIFTED, HALF_KNOWN = "2012-01-01..2014-01-01", "2016-01-01..2017-01-01", "2015-07-01..2016-07-01"


@pytest.fixture(scope="module")
def config(arxiv_titles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arxiv")
    prepare = [sys.executable, "-m", "demo.arxiv", str(arxiv_titles), "--workspace", str(folder)]
    subprocess.run(prepare, check=True, capture_output=True)
    return folder / "redistill.toml"


def ended(config: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "flows.retrain", "--config", str(config), "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def champion(config: Path) -> dict[str, Any]:
    return ended(config)


@pytest.fixture(scope="module")
def held_quiet_windows(config: Path, champion: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Twenty windows of 500 held-out titles of 2012-13, none of which is in the profile: why each was held."""
    chosen = settings.load(config)
    places, watching = wiring.Places(chosen), wiring.watching(chosen)
    now = current_champion(wiring.registry(chosen, places), places.workspace / "checkpoints")
    assert now is not None
    assert now.version == champion["champion"]
    rows = traffic.read_window(places.log, Window.parse(QUIET))
    rows = rows[traffic.row_hash(rows["request_id"]) >= chosen.traffic.profile_until]
    answered = watch.answered(rows, Path(now.checkpoint), watching, "quiet windows", None)
    random, reasons = np.random.default_rng(0), []
    for number in range(20):
        window = answered.iloc[random.choice(len(answered), 500, replace=False)]
        folder = tmp_path_factory.mktemp(f"quiet{number}")
        report = watch.observe(window, QUIET, now, places.runs, folder, watching)
        decision = policy.decide(report, watching.drift, watching.policy)
        assert report.rows == 500
        assert not decision.trigger, f"window {number}: {decision.reason}"
        reasons.append(decision.reason)
    return reasons


@pytest.fixture(scope="module")
def drawn(config: Path, champion: dict[str, Any]) -> list[windows.Seen]:
    """What 200 random windows of 500 quiet titles show the first champion, and 60 of 2016."""
    return windows.draw(config, [QUIET, DRIFTED], rows=500, quiet=200, later=60)


@pytest.fixture(scope="module")
def challenger(
    config: Path, champion: dict[str, Any], held_quiet_windows: list[str], drawn: list[windows.Seen]
) -> dict[str, Any]:
    return ended(config, "--window", DRIFTED)


@pytest.fixture(scope="module")
def half_known(config: Path, challenger: dict[str, Any]) -> dict[str, Any]:
    return ended(config, "--window", HALF_KNOWN, "--force")


def test_the_first_champion_learns_from_2008_to_2013(champion: dict[str, Any]) -> None:
    assert champion["outcome"] == "promoted"
    assert champion["window"] == "2008-01-01..2014-01-01"
    (quality,) = champion["verdict"]["exact_match"].values()
    assert quality["rows"] > 1500
    assert quality["challenger"] > 0.68


def test_quiet_windows_are_all_held(held_quiet_windows: list[str]) -> None:
    assert len(held_quiet_windows) == 20


def test_no_alarm_in_200_quiet_windows_and_in_at_least_95_percent_of_2016(drawn: list[windows.Seen]) -> None:
    quiet, drifted = drawn
    assert quiet.alarms == 0, quiet
    assert drifted.alarms >= 0.95 * drifted.windows, drifted


def test_what_drifted_in_2016_is_the_predicted_class_and_the_vocabulary(drawn: list[windows.Seen]) -> None:
    assert {name for name, _ in drawn[1].columns.most_common(2)} == {"response", "unknown_rate"}


def test_2016_has_drifted_and_its_challenger_is_promoted(challenger: dict[str, Any]) -> None:
    assert challenger["drift"]["drifted"]
    assert challenger["outcome"] == "promoted"


def test_the_challenger_gains_four_points_on_2016_and_loses_at_most_two_on_2012_13(challenger: dict[str, Any]) -> None:
    fresh, old = (challenger["verdict"]["exact_match"][name] for name in (f"fresh {DRIFTED}", f"old {QUIET}"))
    assert fresh["challenger"] - fresh["champion"] >= 0.04
    assert old["challenger"] - old["champion"] >= -0.02


def test_no_label_of_the_window_was_learned(config: Path, challenger: dict[str, Any]) -> None:
    run = config.parent / "runs" / challenger["retrain_id"]
    learned = pd.read_parquet(run / "signals" / "rows.parquet")
    window = pd.read_parquet(run / "window.parquet").set_index("request_id")
    assert window.loc[learned.loc[~learned["replay"], "request_id"], "reference"].isna().all()


def test_a_window_that_is_half_known_buys_at_most_55_percent_of_its_tokens(half_known: dict[str, Any]) -> None:
    bought, reused = (half_known["signals"][key] for key in ("bought_tokens", "reused_tokens"))
    assert 0 < bought <= 0.55 * (bought + reused)
