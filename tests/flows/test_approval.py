"""Approval by a person: on a real Prefect server by input, and at a prompt; nobody's silence promotes."""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from deployments.errors import Failure, InputError
from flows.retrain import retrain
from tasks import approve
from tasks.plan import open_run
from tests.flows.services import PREFECT, ROOT, answers, started, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.integration]

LATER = "2025-04-11..2025-04-18"
MANUAL = {"approval": "manual"}


def tags_of(workspace: Any, version: str) -> dict[str, str]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{workspace.folder / 'mlflow.db'}")
    return dict(client.get_model_version("helpdesk", version).tags)


def champion_of(workspace: Any) -> str | None:
    from mlflow import MlflowClient

    aliases = MlflowClient(f"sqlite:///{workspace.folder / 'mlflow.db'}").get_registered_model("helpdesk").aliases
    return str(aliases["champion"]) if "champion" in aliases else None


@pytest.fixture(scope="module")
def held(make_workspace: Any) -> tuple[Any, dict[str, Any]]:
    """A workspace whose first champion waits for a person, and how its retrain ended."""
    workspace = make_workspace(promotion=MANUAL)
    return workspace, retrain(str(workspace.config))


class TestWithoutAServer:
    def test_a_challenger_is_held_and_the_command_that_approves_it_is_told(self, held: Any) -> None:
        workspace, ended = held
        assert ended["outcome"] == "held"
        assert f"python -m flows.retrain --approve {ended['retrain_id']}" in ended["reason"]
        assert ended["bento"], "what a person is asked about can be served"
        assert champion_of(workspace) is None
        assert retrain(str(workspace.config)) == ended, "asking again promotes nothing"

    def test_a_retrain_that_is_not_there_is_refused_with_those_that_wait(self, held: Any) -> None:
        workspace, ended = held
        with pytest.raises(InputError, match=f"no retrain 'nothere'.*wait for approval: {ended['retrain_id']}"):
            retrain(str(workspace.config), approve="nothere")

    def test_other_settings_than_those_of_the_retrain_are_refused_by_name(self, held: Any) -> None:
        workspace, ended = held
        with pytest.raises(InputError, match=r"other settings than these \(student\.max_new_tokens\)"):
            retrain(str(workspace.config), overrides={"student": {"max_new_tokens": 9}}, approve=ended["retrain_id"])

    def test_an_approval_at_the_prompt_promotes_without_training_again_and_says_who_let_it_through(
        self, held: Any
    ) -> None:
        workspace, ended = held
        trained = workspace.folder / "runs" / ended["retrain_id"] / "train" / "manifest.json"
        before = trained.stat().st_mtime_ns
        options = ("--approve", ended["retrain_id"], "--by", "Ada", "--note", "looked at [50] answers", "--json")
        done = subprocess.run(workspace.command(*options), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout.splitlines()[-1])
        assert result["outcome"] == "promoted"
        assert result["champion"] == ended["challenger"] == champion_of(workspace)
        assert "approved by Ada" in done.stdout
        assert "looked at [50] answers" in done.stdout
        assert trained.stat().st_mtime_ns == before
        tags = tags_of(workspace, result["champion"])
        assert (tags["approval"], tags["approved_by"]) == ("person", "Ada")
        assert tags["approval_note"] == "looked at [50] answers"

    def test_what_was_promoted_cannot_be_approved_once_more(self, held: Any) -> None:
        workspace, ended = held
        with pytest.raises(InputError, match="was promoted already, as version 1"):
            retrain(str(workspace.config), approve=ended["retrain_id"])

    def test_an_approval_that_was_killed_after_its_promotion_is_completed_by_the_same_command(self, held: Any) -> None:
        workspace, ended = held
        run = workspace.folder / "runs" / ended["retrain_id"]
        (run / "result.json").unlink()
        shutil.rmtree(run / "promote")
        done = retrain(str(workspace.config), approve=ended["retrain_id"], by="Grace")
        assert (done["outcome"], done["champion"]) == ("promoted", "1")
        assert tags_of(workspace, "1")["approved_by"] == "Ada", "what was said first stays said"

    def test_an_inconclusive_verdict_is_held_and_can_be_approved(self, held: Any) -> None:
        workspace, _ = held
        few = {"judging": {"min_rows": 5000}, "promotion": {"approval": "auto"}}
        ended = retrain(str(workspace.config), LATER, few, force=True)
        assert (ended["outcome"], ended["verdict"]["outcome"]) == ("held", "inconclusive")
        assert f"--approve {ended['retrain_id']}" in ended["reason"]
        assert ended["bento"] is None, "what nobody let through is not packed"
        done = retrain(str(workspace.config), None, few, approve=ended["retrain_id"], by="Ada")
        assert (done["outcome"], done["champion"]) == ("promoted", ended["challenger"])
        assert tags_of(workspace, done["champion"])["verdict"] == "inconclusive"

    def test_a_challenger_of_a_champion_that_was_replaced_since_is_refused(self, held: Any) -> None:
        workspace, _ = held
        few = {"judging": {"min_rows": 5000}}
        ended = retrain(str(workspace.config), LATER, few, force=True, again=True)
        assert ended["outcome"] == "held"
        from deployments.registry import connect

        connect(f"sqlite:///{workspace.folder / 'mlflow.db'}", "", "helpdesk", timeout=10).rollback("a test")
        with pytest.raises(InputError, match="was judged against version 2, the champion now is version 1: --again"):
            retrain(str(workspace.config), None, few, approve=ended["retrain_id"])

    def test_a_verdict_that_was_changed_after_its_answer_is_refused_and_again_makes_a_new_retrain(
        self, held: Any
    ) -> None:
        workspace, _ = held
        options: dict[str, Any] = {"overrides": {"promotion": {"approval": "manual"}}, "force": True}
        ended = retrain(str(workspace.config), LATER, **options)
        run = workspace.folder / "runs" / ended["retrain_id"]
        answered = approve._write(open_run(run), True, "Ada", "")
        assert answered["approved"]
        (run / "result.json").unlink()
        (run / "judge" / "verdict.json").write_text("{}")
        for _ in range(2):
            with pytest.raises(Failure, match=r"answered on another verdict .*; --again makes a new retrain"):
                retrain(str(workspace.config), LATER, **options)
        new = retrain(str(workspace.config), LATER, **options, again=True)
        assert (new["outcome"], new["retrain_id"] != ended["retrain_id"]) == ("held", True)

    def test_options_that_contradict_each_other_are_refused_before_anything_starts(self, held: Any) -> None:
        workspace, _ = held
        for options, told in (
            (("--approve", "x", "--force"), "--approve names a retrain, --force asks for one"),
            (("--by", "Ada"), "--by and --note say who approves and why"),
        ):
            done = subprocess.run(workspace.command(*options), capture_output=True, text=True, check=False)
            assert (done.returncode, told in done.stderr) == (2, True), done.stderr


def test_a_challenger_whose_checks_failed_cannot_be_approved(make_workspace: Any) -> None:
    from tasks import approve
    from tasks.run import Champion, Request, Run, run_stage

    folder = make_workspace().folder / "runs" / "abc"
    folder.mkdir(parents=True)
    champion = Champion(version="1", checkpoint="", digest="", retrain_id="x", trained=[], profiled=[])
    request = Request(
        retrain_id="abc",
        student="helpdesk",
        window=LATER,
        profile_window=LATER,
        window_digest="",
        window_rows=1,
        force=False,
        teacher="",
        settings={},
        champion=champion,
    )
    run = Run(folder, request)
    run_stage(run, "judge", lambda _: {"outcome": "fail", "reason": "old: it loses more"}, inputs={})
    run.finish({"outcome": "rejected", "reason": "verdict fail"})
    with pytest.raises(InputError, match="cannot be approved, its checks failed: old: it loses more"):
        approve.check(run)


@dataclass(frozen=True)
class Server:
    url: str
    environment: dict[str, str]

    def ask(self, path: str, **body: Any) -> Any:
        return httpx.post(f"{self.url}{path}", json=body, timeout=60).raise_for_status().json()

    def paused(self) -> list[dict[str, Any]]:
        return list(self.ask("/flow_runs/filter", flow_runs={"state": {"type": {"any_": ["PAUSED"]}}}))

    def input(self, run: dict[str, Any], name: str) -> Any:
        keys = run["state"]["state_details"]["run_input_keyset"]
        return httpx.get(f"{self.url}/flow_runs/{run['id']}/input/{keys[name]}", timeout=60).raise_for_status().json()

    def resume(self, run: dict[str, Any], **answer: Any) -> None:
        told = self.ask(f"/flow_runs/{run['id']}/resume", run_input=answer)
        assert told["status"] == "ACCEPT", told


@pytest.fixture(scope="module")
def server(free_port: Callable[[], int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    logs, port = tmp_path_factory.mktemp("prefect"), free_port()
    url = f"http://127.0.0.1:{port}/api"
    environment = {**os.environ, "PREFECT_HOME": str(logs / "home"), "PREFECT_API_URL": url}
    serve = [*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with started(serve, {**environment, "PREFECT_API_URL": ""}, logs / "server.log"):
        wait_for("the Prefect server", lambda: answers(f"{url}/health"), 300)
        yield Server(url, environment)


@contextlib.contextmanager
def asking(server: Server, workspace: Any, *options: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A retrain whose flow run has paused for an answer."""
    command = workspace.command(*options, "--json")
    process = subprocess.Popen(
        command, env=server.environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process, wait_for("a flow run that waits for approval", server.paused, 300)[0]
    finally:
        process.kill()
        process.wait()


def ended_of(process: "subprocess.Popen[str]") -> dict[str, Any]:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return dict(json.loads(out.splitlines()[-1]))


class TestOnAServer:
    def test_the_flow_run_pauses_with_the_verdict_and_a_refusal_rejects(
        self, server: Server, make_workspace: Any
    ) -> None:
        workspace = make_workspace(promotion=MANUAL)
        with asking(server, workspace) as (process, run):
            shown = server.input(run, "description")
            assert "**Version 1 of helpdesk**" in shown
            assert "Verdict: **pass**" in shown
            assert set(server.input(run, "schema")["required"]) == {"approve", "by"}
            server.resume(run, approve=False, by="Ada", note="not this week")
            ended = ended_of(process)
        assert ended["outcome"] == "rejected"
        assert ended["reason"].startswith("refused by Ada")
        assert champion_of(workspace) is None
        tags = tags_of(workspace, ended["challenger"])
        assert (tags["approval"], tags["refused_by"], tags["approval_note"]) == ("refused", "Ada", "not this week")
        with pytest.raises(InputError, match="was refused by 'Ada'"):
            retrain(str(workspace.config), approve=ended["retrain_id"])

    def test_an_answer_at_the_prompt_reaches_the_flow_run_that_waits(self, server: Server, make_workspace: Any) -> None:
        workspace = make_workspace(promotion=MANUAL)
        with asking(server, workspace) as (process, run):
            (waiting,) = (workspace.folder / "runs").glob("*/waiting.json")
            assert json.loads(waiting.read_text())["flow_run"] == run["id"]
            with pytest.raises(Failure, match="waits for its answer on the Prefect server"):
                retrain(str(workspace.config), approve=waiting.parent.name)
            options = ("--approve", waiting.parent.name, "--by", "Ada", "--json")
            given = subprocess.run(
                workspace.command(*options), env=server.environment, capture_output=True, text=True, check=False
            )
            assert given.returncode == 0, given.stderr
            ended = ended_of(process)
        assert ended["outcome"] == "promoted"
        assert json.loads(given.stdout.splitlines()[-1]) == ended
        assert not waiting.exists()
        assert tags_of(workspace, "1")["approved_by"] == "Ada"

    def test_nobody_s_answer_within_the_time_limit_holds_and_it_can_be_approved_later(
        self, server: Server, make_workspace: Any
    ) -> None:
        workspace = make_workspace(promotion={**MANUAL, "timeout_hours": 5 / 3600})
        done = subprocess.run(
            workspace.command("--json"), env=server.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        ended = json.loads(done.stdout.splitlines()[-1])
        assert ended["outcome"] == "held"
        assert champion_of(workspace) is None
        assert retrain(str(workspace.config), approve=ended["retrain_id"], by="Ada")["outcome"] == "promoted"

    def test_a_retrain_killed_while_it_waits_can_be_approved_at_the_prompt(
        self, server: Server, make_workspace: Any
    ) -> None:
        workspace = make_workspace(promotion=MANUAL)
        with asking(server, workspace):
            (waiting,) = (workspace.folder / "runs").glob("*/waiting.json")
        assert waiting.is_file(), "the process was killed and could not take it away"
        without_asking = {"promotion": {"approval": "auto"}}
        assert retrain(str(workspace.config), overrides=without_asking)["outcome"] == "held", "it had been asked"
        assert champion_of(workspace) is None
        done = retrain(str(workspace.config), approve=waiting.parent.name, by="Ada")  # and without that server
        assert done["outcome"] == "promoted"
        assert not waiting.exists()
