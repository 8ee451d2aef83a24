"""The model card says what a student is, why it was made and what was found, in the registry and in the Bento."""

from pathlib import Path
from typing import Any

import pytest

from tasks import card, plan

pytestmark = [pytest.mark.slow, pytest.mark.integration]

SECTIONS = ["What it is", "Why it was made", "Verdict", "Limits", "Cost", "Lineage"]


@pytest.fixture(scope="module")
def written(with_champion: Any) -> str:
    workspace, ended = with_champion
    return (workspace.folder / "runs" / ended["retrain_id"] / "register" / card.CARD_FILE).read_text()


def test_it_has_its_sections_and_each_says_something(written: str) -> None:
    parts = written.split("\n## ")
    assert [part.partition("\n")[0] for part in parts[1:]] == SECTIONS
    assert all(len(part.strip().splitlines()) > 1 for part in parts[1:])


def test_it_names_teacher_window_weights_size_and_cost(written: str, with_champion: Any) -> None:
    from safetensors import safe_open

    workspace, ended = with_champion
    run = plan.open_run(workspace.folder / "runs" / ended["retrain_id"])
    weights = run.stage("train") / "student" / "model.safetensors"
    with safe_open(weights, "np") as opened:
        parameters = sum(opened.get_tensor(name).size for name in opened.keys())  # noqa: SIM118
    manifests = run.manifests()
    costs = [manifests[stage]["result"]["cost"]["bought"] for stage in ("signals", "judge")]
    bought = sum(cost["prompt_tokens"] + cost["answer_tokens"] for cost in costs)
    for told in (
        f"| teacher | SHA-256 {run.request.teacher} |",
        f"| parameters | {parameters:,} |",
        f"| weights, SHA-256 | {manifests['train']['result']['student_sha256']} |",
        f"| window, SHA-256 | {run.request.window_digest} |",
        f"| windows learned from | {run.request.window} |",
        f"| train | {manifests['train']['seconds']:.1f} s |",
        f"| teacher | {bought} tokens bought",
    ):
        assert told in written


def test_the_registry_keeps_it_with_the_version_and_whole_with_the_run(written: str, with_champion: Any) -> None:
    from mlflow import MlflowClient
    from mlflow.artifacts import download_artifacts

    workspace, _ = with_champion
    uri = f"sqlite:///{workspace.folder / 'mlflow.db'}"
    version = MlflowClient(uri).get_model_version_by_alias("helpdesk", "champion")
    described = version.description
    assert described == written if len(written) <= 5000 else described[:3000] == written[:3000]
    kept = download_artifacts(run_id=version.run_id, artifact_path=card.CARD_FILE, tracking_uri=uri)
    assert Path(kept).read_text() == written


def test_the_bento_has_it_as_its_readme(written: str, with_champion: Any) -> None:
    workspace, ended = with_champion
    name, version = ended["bento"].split(":")
    readme = (workspace.folder / "bentoml" / "bentos" / name / version / "README.md").read_text()
    for section in SECTIONS[:3]:
        part = written.split(f"## {section}\n")[1].split("\n## ")[0]
        assert part in readme, section


def test_a_cell_of_a_table_cannot_end_it() -> None:
    judged = {
        "checks": [],
        "metrics": {"old | x\ny": {"exact_match": {"challenger": 0.5, "rows": 10.0}}},
        "budgets": [],
    }
    assert card.checks(judged).splitlines()[2] == r"| old \| x y | exact_match | 10 | 0.5 |"
