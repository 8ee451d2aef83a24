"""What asking the teacher took, as Prometheus reads it; and that the dashboard asks for nothing that is not there."""

import json
import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from distill.errors import Failure
from distill.obtained import nothing
from distill.settings import StudentSettings, TrainingSettings
from distill.teacher_settings import TeacherSettings
from distill.teachers.spent import Effort, Spent
from monitoring.drift import compare
from monitoring.errors import Failure as NotWritten
from monitoring.metrics import write_textfile
from monitoring.profile import ReferenceProfile
from monitoring.settings import DriftSettings, TrafficSettings
from tasks import teach, teacher_metrics
from tasks.teaching import Teaching

GRAFANA = Path(__file__).resolve().parents[2] / "deployments" / "grafana"
KEY = "open sesame"
PROMPTS = ["The printer does not print", "log in", "How do I set up the mail program?", "x", "log in"]


def read(file: Path) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(file.read_text())
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def names_of(file: Path) -> set[str]:
    return {name for name, _ in read(file)}


@pytest.fixture
def teaching(tmp_path: Path, endpoint: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> Teaching:
    """Settings of a teacher behind an endpoint that is busy at first, wants a key, and fails on "broken"."""
    first = threading.Event()

    def reply(posted: dict[str, Any]) -> Any:
        if not first.is_set():
            first.set()
            return 429, {"Retry-After": "0.2"}, {}
        if posted["messages"][0]["content"] == "broken":
            return 200, {}, {"choices": []}
        choice = {"message": {"content": "ok"}, "finish_reason": "stop"}
        return 200, {}, {"model": "big", "choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}

    monkeypatch.setenv("REDISTILL_TEACHER_API_KEY", KEY)
    teacher = TeacherSettings(
        backend="openai", served_model="big", urls=(endpoint(reply, key=KEY),), price_prompt=1.0, price_answer=2.0,
        currency="EUR", concurrency=1,
    )  # fmt: skip
    return Teaching(
        StudentSettings(name="helpdesk", max_new_tokens=8), teacher, TrainingSettings(divergence="none"),
        TrafficSettings(), str(tmp_path / "signals"), tmp_path / "decisions.db",
        metrics=tmp_path / "metrics" / "teacher.prom",
    )  # fmt: skip


def asked(teaching: Teaching, model: Path, prompts: list[str] = PROMPTS) -> Path:
    teach.ask(prompts, model, teaching, Path(teaching.signals).with_name(f"{len(prompts)}.asked.npy"), "rows")
    assert teaching.metrics is not None
    return teaching.metrics


def test_counters_go_on_from_one_process_to_the_next_and_say_what_was_asked(
    teaching: Teaching, tiny_checkpoint: Path
) -> None:
    who = {"student": "helpdesk", "backend": "openai"}
    found = read(asked(teaching, tiny_checkpoint))

    def value(name: str, **labels: str) -> float:
        return found[f"redistill_teacher_{name}", frozenset({**who, **labels}.items())]

    assert (value("rows_total", origin="bought"), value("rows_total", origin="reused")) == (4, 1)
    assert (value("requests_total"), value("retries_total"), value("rests_total")) == (5, 1, 1)
    assert value("waiting_seconds_total") >= 0.15
    assert value("request_seconds_count") == value("request_seconds_bucket", le="+Inf") == 4
    assert value("billed_tokens_total", kind="prompt") == 28
    prompt, answer = (value("tokens_total", origin="bought", kind=kind) for kind in ("prompt", "answer"))
    money = value("money_total", origin="bought", currency="EUR")
    assert money == pytest.approx((prompt + 2 * answer) / 1e6, abs=1e-6)
    assert value("failures_total") == 0

    before = (value("last_asked_timestamp_seconds"), value("asking_seconds_total"))
    found = read(asked(teaching, tiny_checkpoint, [*PROMPTS, "invoice"]))
    assert (value("rows_total", origin="bought"), value("rows_total", origin="reused")) == (5, 6)
    assert value("requests_total") == 6
    assert value("request_seconds_count") == 5
    assert value("asking_seconds_total") > before[1]
    assert value("last_asked_timestamp_seconds") >= before[0]

    with pytest.raises(Failure, match="expected one choice"):
        asked(teaching, tiny_checkpoint, ["this is asked first", "broken"])
    assert teaching.metrics is not None
    found = read(teaching.metrics)
    assert (value("failures_total"), value("requests_total")) == (1, 8)
    assert value("rows_total", origin="bought") == 6, "what came before the error was paid for"


def test_a_teacher_that_is_used_again_counts_what_it_spent_once(teaching: Teaching) -> None:
    class Scorer:
        spent = Spent()

    scorer, none, file = Scorer(), Effort(), teaching.ledger.with_name("asked.npy")
    assert teaching.metrics is not None

    def requests() -> float:
        assert teaching.metrics is not None
        return sum(n for (name, _), n in read(teaching.metrics).items() if name == "redistill_teacher_requests_total")

    with teacher_metrics.counting(teaching, scorer, lambda: (0, 0, 0), file) as ended:
        scorer.spent = Spent(requests=7)
        ended.append(replace(nothing(), effort=replace(none, spent=scorer.spent)))
    assert requests() == 7
    with teacher_metrics.counting(teaching, scorer, lambda: (0, 0, 0), file) as ended:
        ended.append(nothing())  # all was in the store
    assert requests() == 7
    with (
        pytest.raises(Failure, match="full"),
        teacher_metrics.counting(teaching, scorer, lambda: (0, 0, 0), file),
    ):
        raise Failure("the disk is full")  # before anything was asked
    assert requests() == 7


def test_what_a_stage_has_bought_and_asks_for_again_is_not_counted_as_found(
    teaching: Teaching, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    for prompts in (PROMPTS[:2], PROMPTS):  # some are tried out first
        teach.ask(prompts, tiny_checkpoint, teaching, tmp_path / "asked.npy", "rows")
    assert teaching.metrics is not None
    rows = {
        dict(labels)["origin"]: n
        for (name, labels), n in read(teaching.metrics).items()
        if name == "redistill_teacher_rows_total"
    }
    assert rows == {"bought": 4, "reused": 1}


def test_what_a_killed_process_has_bought_is_counted_as_bought_by_the_next(teaching: Teaching, tmp_path: Path) -> None:
    file = tmp_path / "asked.npy"
    if not (process := os.fork()):
        with teacher_metrics.counting(teaching, None, lambda: (0, 0, 0), file):
            os._exit(0)  # as by SIGKILL: it bought ten rows until then, and said so nowhere
    os.waitpid(process, 0)
    with teacher_metrics.counting(teaching, None, lambda: (12, 120, 24), file) as ended:
        ended.append(nothing())
    assert teaching.metrics is not None
    bought = {
        name: value
        for (name, labels), value in read(teaching.metrics).items()
        if ("origin", "bought") in labels and ("kind", "answer") not in labels
    }
    assert bought["redistill_teacher_rows_total"] == 12
    assert bought["redistill_teacher_tokens_total"] == 120
    assert sorted(path.name for path in tmp_path.iterdir() if "counting" in path.name) == []


def test_neither_prompts_nor_key_nor_address_are_in_the_file(teaching: Teaching, tiny_checkpoint: Path) -> None:
    text = asked(teaching, tiny_checkpoint).read_text()
    assert not [secret for secret in (*PROMPTS[:3], KEY, *teaching.teacher.urls) if secret in text]


def test_a_teacher_in_this_process_has_no_requests_and_none_are_shown(
    teaching: Teaching, tiny_checkpoint: Path
) -> None:
    local = TeacherSettings(model=str(tiny_checkpoint), top_k=4, device="cpu")
    names = names_of(asked(replace(teaching, teacher=local), tiny_checkpoint))
    assert "redistill_teacher_tokens_total" in names
    assert not {name for name in names if "request" in name or "money" in name or "billed" in name}


def test_of_several_processes_none_is_lost(tmp_path: Path) -> None:
    file, who = tmp_path / "teacher.prom", (("student", "s"), ("backend", "local"))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: teacher_metrics.add(file, [("requests", "_total", who, 1.0)]), range(40)))
    assert read(file)["redistill_teacher_requests_total", frozenset(who)] == 40


def test_a_file_of_something_else_is_named_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "x.prom").write_text("redistill_teacher_rows_total{ 1 2 3\n")
    with pytest.raises(NotWritten, match=r"x\.prom is no Prometheus textfile"):
        teacher_metrics.add(tmp_path / "x.prom", [("requests", "_total", (), 1.0)])
    assert (tmp_path / "x.prom").read_text() == "redistill_teacher_rows_total{ 1 2 3\n"


def test_the_dashboard_and_the_alerts_ask_for_what_we_export(
    teaching: Teaching, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    columns = pd.DataFrame({"x": np.random.default_rng(0).normal(size=500)})
    options: dict[str, Any] = {"window": "then", "model_version": "1", "max_categories": 50, "sample_rows": 100}
    drift = compare(
        ReferenceProfile.build(columns, seed=0, **options), columns, "2016-01-01..2016-02-01", DriftSettings()
    )
    write_textfile(drift, "helpdesk", tmp_path / "drift.prom")
    exported = names_of(asked(teaching, tiny_checkpoint)) | names_of(tmp_path / "drift.prom")
    wanted = {name for name in wanted_metrics() if name.startswith("redistill_")}
    assert len(wanted) > 10
    assert wanted <= exported
    ours = {name for name in exported if name.startswith("redistill_teacher_")}
    assert ours <= wanted, "whatever we count is shown"


def test_every_label_that_is_selected_or_summed_by_is_one_of_ours(teaching: Teaching, tiny_checkpoint: Path) -> None:
    labels = {name for _, pairs in read(asked(teaching, tiny_checkpoint)) for name, _ in pairs}
    for expression in expressions():
        if "redistill_teacher" not in expression:
            continue
        used = {name.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for name in group.split(",")}
        used |= set(re.findall(r"[{,]\s*(\w+)=", expression))
        assert used <= labels, expression


def test_panels_do_not_overlap_and_each_has_a_title_and_a_unit() -> None:
    panels = json.loads((GRAFANA / "redistill.json").read_text())["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        assert panel["title"]
        assert panel["type"] == "row" or panel["fieldConfig"]["defaults"]["unit"]
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_the_scrape_configuration_names_the_alerts_that_lie_beside_it() -> None:
    scraped = yaml.safe_load((GRAFANA / "prometheus.yaml").read_text())
    assert [(GRAFANA / file).is_file() for file in scraped["rule_files"]] == [True]
    targets = [
        target for job in scraped["scrape_configs"] for each in job["static_configs"] for target in each["targets"]
    ]
    assert all(target.startswith("127.0.0.1:") for target in targets)


def expressions() -> list[str]:
    """Return all PromQL of dashboard and alerts."""
    board = json.loads((GRAFANA / "redistill.json").read_text())
    rules = yaml.safe_load((GRAFANA / "alerts.yaml").read_text())["groups"]
    found = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    found += [variable["definition"] for variable in board["templating"]["list"] if "definition" in variable]
    return found + [rule["expr"] for group in rules for rule in group["rules"]]


def wanted_metrics() -> set[str]:
    """Return the names of all metrics that dashboard and alerts ask for."""
    return {name for text in expressions() for name in re.findall(r"(?:redistill_|sglang:)\w+", text)}
