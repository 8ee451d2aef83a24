"""What a retrain leaves in the registry: verified by the command, tracked besides, nothing of the prompts."""

import json
import subprocess
import sys
from typing import Any

import pytest

from flows.retrain import retrain
from flows.rollback import rollback

pytestmark = [pytest.mark.slow, pytest.mark.integration]


def test_a_retrain_is_verified_by_the_command_and_tracked_in_weights_and_biases_too(make_workspace: Any) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    from deployments.errors import InputError
    from deployments.registry import connect

    workspace = make_workspace(registry={"wandb": "offline"})
    result = retrain(str(workspace.config))
    assert result["outcome"] == "promoted"
    stage = workspace.folder / "runs" / result["retrain_id"] / "register"
    registered = json.loads((stage / "manifest.json").read_text())["result"]
    tracked = registered["wandb"]
    assert (tracked["trouble"], tracked["troubles"], tracked["sent"]) == ("", 0, False)
    registry = connect(f"sqlite:///{workspace.folder}/mlflow.db", "", "helpdesk", 60)
    mlflow_run = registry.client.get_run(registered["run_id"])
    told = json.loads((stage / "wandb" / "run.json").read_text())
    assert told["config"] == mlflow_run.data.params
    assert {key for _, values in told["steps"] for key in values} <= set(mlflow_run.data.metrics)
    assert tracked["points"] == sum(len(values) for _, values in told["steps"]) > 10
    (run,) = (stage / "wandb" / tracked["folder"]).glob("run-*.wandb")
    written = b"".join(path.read_bytes() for path in (stage / "wandb").rglob("*") if path.is_file())
    assert run.stat().st_size > 1000
    assert not any(prompt.encode() in written for prompt in workspace.prompts() if len(prompt) > 20)

    command = [sys.executable, "-m", "deployments.registry", "verify", "--workspace", str(workspace.folder)]
    command += ["--student", "helpdesk", "--log", str(workspace.folder / "traffic"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    verified = json.loads(done.stdout)
    assert verified["differences"] == []
    assert [text.partition(",")[0] for text in verified["data"].values()] == ["unchanged", "unchanged"]
    with pytest.raises(InputError, match="nothing to roll back to: champion 1"):
        rollback(str(workspace.config), champion="1")
