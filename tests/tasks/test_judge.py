"""The verdict on real students: each knows what it was shown, and forgot what it was shown otherwise."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from prefect import flow

from demo.teacher import train_teacher
from demo.tokenizer import train_tokenizer
from distill import checkpoint
from distill.settings import StudentSettings, TrainingSettings
from distill.teacher_settings import TeacherSettings
from monitoring import traffic
from monitoring.judging_settings import JudgingSettings
from monitoring.settings import TrafficSettings
from tasks.judge import judge, table
from tasks.plan import GOLDEN_FILE
from tasks.run import Champion, Request, Run
from tasks.teaching import Teaching

pytestmark = [pytest.mark.slow, pytest.mark.integration]

OLD, OLDER, NEW = "2025-01-02..2025-01-03", "2025-01-01..2025-01-02", "2025-01-03..2025-01-04"
WORDS = {OLDER: ("printer", "laptop"), OLD: ("invoice", "account"), NEW: ("router", "screen")}
RIGHT = {word: label for pair in WORDS.values() for word, label in zip(pair, ("red / low", "blue / high"), strict=True)}
WRONG = {"red / low": "blue / high", "blue / high": "red / low"}
REGIONS = {"north": 0.6, "south": 0.4}
ROWS = 900  # a day, of which some 360 are held out
SETTINGS = JudgingSettings(segment_rows=100, min_rows=50, latency_rows=8, max_latency_p50=0, max_latency_p95=0)

Answer = Callable[[str, str], bool]  # (region, word) -> whether the student knows it
KNOWS: dict[str, Answer] = {
    "champion": lambda region, word: word not in WORDS[NEW] or region == "south",
    "good": lambda region, word: True,
    "forgetful": lambda region, word: word not in WORDS[OLDER],
    "unfair": lambda region, word: word not in WORDS[NEW] or region == "north",
    "lazy": lambda region, word: word not in WORDS[NEW] or region == "south",
}


def day(window: str, rows: int = ROWS) -> pd.DataFrame:
    """Return a day's labelled requests."""
    start, rng = pd.Timestamp(window.split("..")[0], tz="UTC"), np.random.default_rng(len(window) + int(window[9]))
    words = rng.choice(WORDS[window], rows)
    regions = rng.choice(list(REGIONS), rows, p=list(REGIONS.values()))
    return pd.DataFrame(
        {
            "request_id": [f"{window[:10]}-{number}" for number in range(rows)],
            "timestamp": start + pd.to_timedelta(np.arange(rows), "s"),
            "prompt": [
                f"{region} {word} {n % 50}" for n, (region, word) in enumerate(zip(regions, words, strict=True))
            ],
            "reference": [RIGHT[word] for word in words],
            "meta_region": regions,
        }
    )


@dataclass(frozen=True)
class Place:
    """A log, a run of its last day, and the students by name."""

    log: str
    run: Run
    students: Mapping[str, Path]
    teaching: Teaching

    def judge(self, student: str, settings: JudgingSettings = SETTINGS) -> dict[str, Any]:
        run, given = self.run, (self.log, self.students[student], settings, self.teaching)
        return dict(flow(lambda: judge(run, *given), name="judging")())


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("students")
    asked = [(region, word, n) for region in REGIONS for word in RIGHT for n in range(50)]
    prompts = [f"{region} {word} {n}" for region, word, n in asked]
    tokenizer = train_tokenizer(prompts, list(WRONG), 400)
    found = {}
    for name, knows in KNOWS.items():
        answers = [RIGHT[word] if knows(region, word) else WRONG[RIGHT[word]] for region, word, _ in asked]
        found[name] = train_teacher(
            folder / name, tokenizer, prompts, answers,
            width=32, layers=2, heads=2, steps=150, batch_size=64, learning_rate=1e-2, seed=0,
        )  # fmt: skip
    return found


@pytest.fixture
def place(tmp_path: Path, students: dict[str, Path]) -> Place:
    log = str(tmp_path / "traffic")
    for window in WORDS:
        traffic.append(log, day(window))
    teaching = Teaching(
        StudentSettings(max_new_tokens=8), TeacherSettings(model=str(students["good"]), top_k=4),
        TrainingSettings(), TrafficSettings(), str(tmp_path / "signals"), tmp_path / "db",
    )  # fmt: skip
    return Place(log, open_run(tmp_path / "runs" / "retrain", log, students["champion"]), students, teaching)


def open_run(folder: Path, log: str, champion: Path | None) -> Run:
    """Return a run that watched, learned and trained."""
    before = [OLDER, OLD]
    frozen = champion and Champion(
        version="1", checkpoint=str(champion), digest=checkpoint.digest(champion), retrain_id="first",
        trained=before, profiled=before,
    )  # fmt: skip
    frame = traffic.read_window(log, traffic.Window.parse(NEW))
    request = Request(
        retrain_id=folder.name, student="s", window=NEW, profile_window=NEW, window_digest="w",
        window_rows=len(frame), force=False, teacher="t", settings={}, champion=frozen or None,
    )  # fmt: skip
    folder.mkdir(parents=True)
    frame.to_parquet(folder / "window.parquet")
    (folder / "request.json").write_text(json.dumps(request.model_dump()))
    return Run(folder, request)


def checks(ended: dict[str, Any], metric: str = "exact_match") -> dict[str, dict[str, Any]]:
    return {check["slice"]: check for check in ended["checks"] if check["metric"] == metric}


def test_a_challenger_that_learned_the_new_and_kept_the_old_passes(place: Place) -> None:
    ended = place.judge("good")
    assert ended["outcome"] == "pass", ended["reason"]
    north, south = "segment meta_region = north", "segment meta_region = south"
    assert checks(ended).keys() == {f"fresh {NEW}", f"old {OLD}", f"old {OLDER}", north, south}
    assert {check["outcome"] for check in checks(ended).values()} == {"pass"}
    assert checks(ended)[north]["difference"] > 0.9
    assert ended["harmed"] == []
    likelihood = checks(ended, "negative_log_likelihood")[f"fresh {NEW}"]
    assert likelihood["difference"] < -0.5, "it finds the right answers likelier"
    metrics = {check["metric"] for check in ended["checks"]}
    assert metrics == {"exact_match", "token_f1", "negative_log_likelihood", "calibration_error", "refusal_rate"}
    assert ended["exact_match"].keys() == {f"fresh {NEW}", f"old {OLD}", f"old {OLDER}"}
    assert [budget["name"] for budget in ended["budgets"]] == ["size on disk", "memory", "latency p50", "latency p95"]
    assert all(budget["ratio"] == pytest.approx(1, rel=0.01) for budget in ended["budgets"][:2])
    scores = pd.read_parquet(place.run.stage("judge") / "scores.parquet")
    assert scores["slice"].iloc[0] == f"fresh {NEW}"
    assert not scores["request_id"].duplicated().any()
    assert scores["challenger_confidence"].between(0, 1).all()
    said = json.dumps(ended) + (place.run.stage("judge") / "verdict.json").read_text()
    assert not any(prompt in said for prompt in scores["prompt"])


def test_a_challenger_that_forgot_one_old_slice_is_refused_by_name(place: Place) -> None:
    ended = place.judge("forgetful")
    assert ended["outcome"] == "fail"
    failed = [name for name, check in checks(ended).items() if check["outcome"] == "fail"]
    assert failed == ended["harmed"] == [f"old {OLDER}"]
    assert ended["reason"].startswith(f"old {OLDER}, exact_match: challenger - champion = -1.0000")
    assert checks(ended)[f"fresh {NEW}"]["outcome"] == "pass"
    assert table(ended)[0]["slice"] == f"old {OLDER}", "the worst first"


def test_a_challenger_better_on_average_and_worse_for_one_segment_is_refused(place: Place) -> None:
    ended = place.judge("unfair")
    found = checks(ended)
    assert found[f"fresh {NEW}"]["difference"] > 0.1
    assert found[f"fresh {NEW}"]["outcome"] == "pass"
    assert ended["outcome"] == "fail"
    assert [name for name, check in found.items() if check["outcome"] == "fail"] == ["segment meta_region = south"]


def test_a_challenger_like_the_champion_is_not_promoted_for_nothing(place: Place) -> None:
    ended = place.judge("lazy")
    assert ended["outcome"] == "inconclusive"
    assert checks(ended)[f"fresh {NEW}"]["outcome"] == "inconclusive"
    assert ended["reason"].startswith(f"fresh {NEW}, exact_match")


@pytest.mark.parametrize(("student", "outcome"), [("good", "pass"), ("forgetful", "fail")])
def test_the_golden_set_is_judged(place: Place, student: str, outcome: str) -> None:
    golden = day(OLDER, 300).assign(request_id=[f"g-{n}" for n in range(300)]).drop_duplicates("prompt")
    golden[["request_id", "prompt", "reference"]].to_parquet(place.run.folder / GOLDEN_FILE)
    champion = place.run.request.champion
    assert champion
    without = place.run.request.model_copy(update={"champion": champion.model_copy(update={"profiled": [OLD]})})
    ended = Place(place.log, Run(place.run.folder, without), place.students, place.teaching).judge(student)
    assert ended["outcome"] == outcome, ended["reason"]
    assert checks(ended)["golden"]["outcome"] == outcome
    assert checks(ended)["golden"]["rows"] == len(golden)
    assert checks(ended)["golden"]["kind"] == "golden"
    assert ended["metrics"]["golden"]["exact_match"]["champion"] == 1.0


def test_a_first_champion_is_compared_with_nobody_and_its_scores_are_told(place: Place, tmp_path: Path) -> None:
    first = Place(place.log, open_run(tmp_path / "runs" / "first", place.log, None), place.students, place.teaching)
    ended = first.judge("good")
    assert (ended["outcome"], ended["checks"], ended["budgets"]) == ("pass", [], [])
    assert "there is none to compare it with" in ended["reason"]
    own = ended["metrics"][f"fresh {NEW}"]
    assert own["exact_match"]["challenger"] > 0.98
    assert own["negative_log_likelihood"]["challenger"] < 0.1
    assert {"slice", "metric", "challenger", "rows"} == set(table(ended)[0])


def test_agreement_with_the_teacher_is_bought_only_when_it_is_asked_for(place: Place, tmp_path: Path) -> None:
    """All rows have labels: the teacher is not asked, and a second time finds what was bought."""
    run = place.run
    held_out = sum(int((traffic.row_hash(day(window)["request_id"]) >= 60).sum()) for window in WORDS)
    ended = place.judge("good")
    assert (ended["bought_tokens"], set(ended["teacher_known"].values())) == (0, {0})
    bought = Place(
        place.log, open_run(tmp_path / "runs" / "bought", place.log, place.students["champion"]), place.students,
        place.teaching,
    ).judge("good", SETTINGS.model_copy(update={"buy_teacher_agreement": True}))  # fmt: skip
    assert bought["bought_tokens"] > 0
    assert sum(bought["teacher_known"].values()) == held_out
    assert checks(bought, "teacher_agreement")[f"fresh {NEW}"]["challenger"] == 1.0, "the teacher is the challenger"
    reused = Place(place.log, open_run(tmp_path / "runs" / "reused", place.log, place.students["champion"]),
                   place.students, place.teaching).judge("lazy")  # fmt: skip
    assert reused["bought_tokens"] == 0
    assert reused["teacher_known"] == bought["teacher_known"]
    assert checks(reused, "teacher_agreement")[f"fresh {NEW}"]["rows"] == bought["teacher_known"][f"fresh {NEW}"]
    assert run.stage("judge").is_dir()


@pytest.mark.parametrize(("student", "outcome"), [("good", "pass"), ("forgetful", "fail")])
def test_a_task_of_lm_eval_is_a_slice_and_can_be_a_gate(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, student: str, outcome: str
) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    asked = [(f"north {word} {n}", RIGHT[word]) for word in WORDS[OLDER] for n in range(50)]
    lines = [json.dumps({"prompt": prompt, "label": list(WRONG).index(right)}) for prompt, right in asked]
    (tmp_path / "older.jsonl").write_text("\n".join(lines))
    task = {
        "task": "older", "dataset_path": "json", "test_split": "test", "output_type": "multiple_choice",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "older.jsonl")}}, "doc_to_text": "{{prompt}}",
        "doc_to_choice": list(WRONG), "doc_to_target": "{{label}}", "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    (tmp_path / "older.yaml").write_text(json.dumps(task))
    settings = {"lm_eval": (str(tmp_path / "older.yaml"),), "gates": ("exact_match", "lm_eval=0.05")}
    ended = place.judge(student, SETTINGS.model_copy(update=settings))
    found = checks(ended, "lm_eval")["lm_eval older acc"]
    assert (found["kind"], found["rows"], found["champion"]) == ("lm_eval", 100, 1.0)
    assert found["outcome"] == ended["outcome"] == outcome


def test_fairness_is_judged_where_it_is_asked_for(place: Place) -> None:
    pytest.importorskip("fairlearn")
    ended = place.judge("unfair", SETTINGS.model_copy(update={"fairness": True}))
    (even,) = ended["fairness"]
    assert (even["column"], even["outcome"]) == ("meta_region", "fail")
    assert "south" in even["worst"]
    assert any(row["slice"] == "fairness over meta_region" for row in table(ended))


def test_values_of_too_few_rows_in_a_column_of_many_are_told_of_together(place: Place) -> None:
    window = pd.read_parquet(place.run.folder / "window.parquet")
    tenants = ["large" if at % 2 else f"tenant {at}" for at in range(ROWS)]
    window.assign(meta_tenant=tenants).to_parquet(place.run.folder / "window.parquet")
    ended = place.judge("good")
    rows = checks(ended)[f"fresh {NEW}"]["rows"] - checks(ended)["segment meta_tenant = large"]["rows"]
    few = "fewer than judging.segment_rows = 100 rows each"
    told = f"meta_tenant: {rows} of {rows + 1} values have {few}, {rows} rows in all"
    assert told in ended["left_out"]
    assert told in json.loads((place.run.stage("judge") / "verdict.json").read_text())["left_out"]


def test_a_challenger_that_takes_too_much_memory_is_refused(place: Place) -> None:
    ended = place.judge("good", SETTINGS.model_copy(update={"max_memory": 0.5}))
    assert ended["outcome"] == "fail"
    assert ended["reason"].startswith("memory: ")
    assert table(ended)[0]["metric"] == "memory [MB]"
