"""The whole loop with a teacher that gives answers alone: a real HTTP server that says what a real model answers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from distill.signals import SignalStore
from flows import summary
from flows.retrain import retrain

pytestmark = [pytest.mark.slow, pytest.mark.integration]

LATER = "2025-04-11..2025-04-18"
PRICES = {"price_prompt": 2.0, "price_answer": 6.0, "currency": "EUR"}
Ended = tuple[Any, dict[str, Any], dict[str, Any]]


def filtered(prompt: str) -> bool:
    return len(prompt) % 10 == 0


@pytest.fixture
def ended(
    make_workspace: Any, endpoint: Callable[..., str], tmp_path: Path, checkpoint_maker: Callable[..., Path]
) -> Ended:
    """Return a workspace, how its first champion was made, and how a retrain of a later window was forced."""
    from distill.scoring import score

    behind = checkpoint_maker(tmp_path / "behind", seed=1)
    answers: dict[str, str] = {}

    def reply(posted: dict[str, Any]) -> Any:
        text = posted["messages"][0]["content"]
        choice = {
            "message": {"content": answers[text]},
            "finish_reason": "content_filter" if filtered(text) else "stop",
        }
        return 200, {}, {"model": "big", "choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 2}}

    workspace = make_workspace(
        teacher={"model": "", "backend": "openai", "served_model": "big", "urls": endpoint(reply), **PRICES},
        training={"divergence": "none", "cross_entropy_weight": 1.0},
        mixture={"error_share": 0.0},
        audit={"samples": 1, "sample_rows": 5, "labels": False},
    )
    prompts = workspace.prompts()
    said = score(behind, prompts, max_prompt_tokens=200, max_new_tokens=8, device="cpu").responses
    answers.update(zip(prompts, said, strict=True))
    first = retrain(str(workspace.config))
    return workspace, first, retrain(str(workspace.config), LATER, force=True)


def result_of(workspace: Any, ended: dict[str, Any], stage: str) -> dict[str, Any]:
    file = workspace.folder / "runs" / ended["retrain_id"] / stage / "manifest.json"
    return dict(json.loads(file.read_text())["result"])


@pytest.fixture
def costs_add_up(ended: Ended) -> Callable[[str], None]:
    """Return a function: it fails unless a stage's slices add up to what the stage cost."""
    workspace, _, later = ended

    def check(stage: str) -> None:
        result = result_of(workspace, later, stage)
        cost = result["cost"]
        for origin in ("bought", "reused"):
            for name, whole in cost[origin].items():
                parts = sum(part[origin][name] for part in cost["slices"].values())
                assert parts == pytest.approx(whole, abs=1e-5), (stage, origin, name)
            tokens = cost[origin]["prompt_tokens"] + cost[origin]["answer_tokens"]
            assert tokens == result[f"{origin}_tokens"]
            money = (2.0 * cost[origin]["prompt_tokens"] + 6.0 * cost[origin]["answer_tokens"]) / 1e6
            assert cost[origin]["money"] == pytest.approx(money, abs=1e-6)

    return check


def test_champions_are_made_from_answers_alone_and_every_token_is_accounted_for(
    ended: Ended, costs_add_up: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    workspace, first, later = ended
    assert first["outcome"] == "promoted"
    assert later["challenger"] == "2"
    store = SignalStore(workspace.folder / "signals")
    assert {shard.format for shard in store._shards.values()} == {"answer"}

    # What was filtered is quarantined, and nothing is judged by it.
    run = workspace.folder / "runs" / first["retrain_id"]
    rows, window = pd.read_parquet(run / "signals" / "rows.parquet"), pd.read_parquet(run / "window.parquet")
    prompts = rows.merge(window[["request_id", "prompt"]], on="request_id")["prompt"]
    assert ((rows["outcome"] == "quarantined_withheld") == prompts.map(filtered)).all()
    assert rows["teacher_logprob"].isna().all()
    signals = result_of(workspace, first, "signals")
    assert signals["answers"]["filtered"] == prompts.map(filtered).sum() == signals["outcomes"]["quarantined_withheld"]
    judged = pd.read_parquet(run / "judge" / "scores.parquet")
    assert not judged.loc[judged["by_teacher"], "prompt"].map(filtered).any()

    # What it cost adds up, over slices and over stages.
    signals, asked = result_of(workspace, later, "signals"), ("probe", "signals", "judge")
    for stage in asked:
        costs_add_up(stage)
    assert {"window", "audit samples"} < set(signals["cost"]["slices"])
    assert any(name.startswith("replay ") for name in signals["cost"]["slices"])
    assert signals["cost"]["slices"]["audit samples"]["bought"]["rows"] == signals["sampled_rows"] == 5
    replayed = [part for name, part in signals["cost"]["slices"].items() if name.startswith("replay ")]
    assert sum(part["reused"]["rows"] for part in replayed) > 0
    assert sum(part["bought"]["rows"] for part in replayed) == 0, "it was bought for the first champion"
    asking = signals["cost"]["asking"]
    assert asking["requests"] == signals["bought_rows"]
    assert asking["retries"] == asking["rests"] == asking["unbilled_replies"] == 0
    assert asking["billed_prompt_tokens"] == 10 * asking["requests"]
    assert asking["billed_money"] == pytest.approx(asking["requests"] * (2.0 * 10 + 6.0 * 2) / 1e6)
    assert asking["tokens_per_second"] > 0
    whole = later["cost"]
    assert whole["bought"]["prompt_tokens"] + whole["bought"]["answer_tokens"] == later["signals"]["bought_tokens"]
    assert whole["currency"] == "EUR"
    assert set(asked) <= set(whole["stages"])

    # It is shown to people, and is in MLflow.
    capsys.readouterr()
    summary.show(later)
    shown = capsys.readouterr().out
    assert "EUR paid" in shown
    assert "audit samples" in shown
    assert f"{whole['asking']['requests']} requests, 0 retries" in " ".join(shown.split())
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{workspace.folder / 'mlflow.db'}")
    logged = client.get_run(client.get_model_version("helpdesk", "2").run_id).data
    assert logged.params["teacher.currency"] == "EUR"
    assert logged.metrics["teacher/signals/bought_prompt_tokens"] == signals["cost"]["bought"]["prompt_tokens"]
    assert logged.metrics["teacher/signals/reused_money"] == signals["cost"]["reused"]["money"]
    assert logged.metrics["teacher/probe/asking_requests"] > 0
