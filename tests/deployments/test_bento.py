"""A Bento holds the student and nothing else, and when served it answers as the checkpoint does."""

import json
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from deployments.bento.build import Bento
from deployments.bento.builder import SERVICE
from deployments.bento.smoke import Server
from deployments.errors import Failure, InputError

BuildBento = Callable[..., Bento]
SECRET = "zanzibar-4711"


def _reference(student: Path, prompt: str, max_prompt_tokens: int, max_new_tokens: int) -> tuple[str, float]:
    """Answer one prompt by a plain loop over the model's logits: no padding, no batch, no generate()."""
    tokenizer = AutoTokenizer.from_pretrained(student)
    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32).eval()
    user, bot = tokenizer.convert_tokens_to_ids(["<user>", "<bot>"])
    text = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    tokens = [user, *text[-(max_prompt_tokens - 2) :], bot]
    answer: list[int] = []
    logprobs: list[float] = []
    while len(answer) < max_new_tokens and (not answer or answer[-1] != tokenizer.eos_token_id):
        with torch.no_grad():
            logits = model(torch.tensor([tokens + answer])).logits[0, -1, : len(tokenizer)]
        best = logits.log_softmax(-1).max(-1)
        answer.append(int(best.indices))
        logprobs.append(float(best.values))
    return tokenizer.decode(answer, skip_special_tokens=True), sum(logprobs) / len(logprobs)


def _ask(client: httpx.Client, prompts: Any) -> httpx.Response:
    return client.post("/generate", json={"prompts": prompts})


def _steps(client: httpx.Client) -> tuple[int, int]:
    """Return how many steps were made so far, and how many rows got a token in them."""
    lines = [line.split() for line in client.get("/metrics").text.splitlines() if line.startswith("student_step_rows_")]
    found = {kind: int(float(value)) for name, value in lines for kind in ("count", "sum") if name.endswith(kind)}
    return found["count"], found["sum"]


def _wait(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        pause.wait(0.05)


# --- what is in it ---------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_a_bento_holds_the_checkpoint_the_service_and_its_limits_and_no_prompt(
    bento: Bento, prompts: list[str]
) -> None:
    source = bento.path / "src"
    assert {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()} == {
        "bentofile.yaml",
        *(f"serving/{path.name}" for path in SERVICE.glob("*.py")),
        "model.json",
        "checkpoint/config.json",
        "checkpoint/generation_config.json",
        "checkpoint/model.safetensors",
        "checkpoint/tokenizer.json",
        "checkpoint/tokenizer_config.json",
        "checkpoint/chat_template.jinja",
    }
    everything = [path for path in bento.path.parents[2].rglob("*") if path.is_file()]
    for path in everything:
        content = path.read_bytes()
        for private in (*prompts[:4], str(bento.path.parents[3])):
            assert private.strip().encode() not in content, f"{private!r} is in {path}"


@pytest.mark.integration
def test_a_bento_pins_what_is_installed_without_the_suffix_of_a_local_build(bento: Bento) -> None:
    pins = (bento.path / "env" / "python" / "requirements.txt").read_text().split()
    assert f"torch=={torch.__version__.partition('+')[0]}" in pins
    assert all("==" in pin and "+" not in pin for pin in pins)
    assert {"bentoml", "numpy", "safetensors", "transformers"} <= {pin.partition("==")[0] for pin in pins}


@pytest.mark.integration
def test_building_again_returns_the_same_bento_and_installs_nothing(build_bento: BuildBento, bento: Bento) -> None:
    before = (bento.path / "bento.yaml").stat()
    lines: list[str] = []
    assert build_bento(bento.path.parents[2], log=lines.append) == bento
    assert lines == ["Bento tiny:7-r0a1b2 is there already"]
    assert (bento.path / "bento.yaml").stat().st_ino == before.st_ino


@pytest.mark.integration
def test_a_damaged_or_outdated_bento_is_built_anew_and_nothing_else_is_left(
    build_bento: BuildBento, student: Path, tmp_path: Path
) -> None:
    bento = build_bento(tmp_path)
    weights = bento.path / "src" / "checkpoint" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert build_bento(tmp_path) == bento
    assert weights.read_bytes() == (student / "model.safetensors").read_bytes()
    lines: list[str] = []
    build_bento(tmp_path, log=lines.append, max_new_tokens=3)
    assert json.loads((bento.path / "src" / "model.json").read_text())["max_new_tokens"] == 3
    assert not any("uv" in line for line in lines), lines
    assert list((tmp_path / "tmp").iterdir()) == []
    assert {path.name for path in bento.path.parent.iterdir()} == {"7-r0a1b2", "latest"}


@pytest.mark.integration
def test_a_failed_build_names_the_bento_and_the_reason_and_leaves_nothing(
    build_bento: BuildBento, tmp_path: Path
) -> None:
    (tmp_path / "bentos").write_text("a file where the store should be")
    with pytest.raises(Failure, match=r"tiny:7-r0a1b2(.|\n)*(NotADirectory|FileExists)Error"):
        build_bento(tmp_path)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_checkpoint_without_a_shard_is_refused_by_name(
    build_bento: BuildBento, student: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(student, broken)
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (broken / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (broken / "model.safetensors").rename(broken / shards["a"])
    with pytest.raises(InputError, match=r"lacks 1 of 2 weight files .model-00002-of-00002"):
        build_bento(tmp_path / "store", checkpoint=broken)
    (broken / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"has no tokenizer\.json"):
        build_bento(tmp_path / "store", checkpoint=broken)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student": "tiny-"}, r"student\.name 'tiny-' cannot name a Bento"),
        ({"retrain_id": "x" * 80}, "version '7-xxx"),
    ],
)
def test_what_bentoml_cannot_take_is_refused_before_the_build(
    build_bento: BuildBento, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build_bento(tmp_path / "store", **change)
    assert not (tmp_path / "store").exists()


# --- what it answers -------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_served_answers_and_log_probabilities_are_the_checkpoints(
    student: Path, client: httpx.Client, prompts: list[str], limits: dict[str, int]
) -> None:
    rows = _ask(client, prompts).json()
    for prompt, row in zip(prompts, rows, strict=True):
        response, mean_logprob = _reference(student, prompt, **limits)
        assert row == {
            "response": response,
            "mean_logprob": pytest.approx(mean_logprob, abs=1e-5),
            "model_version": "7",
        }
    assert len({row["response"] for row in rows}) == len(prompts)  # else the test could not tell them apart


@pytest.mark.integration
def test_concurrent_requests_are_batched_and_each_gets_its_own_answers(client: httpx.Client) -> None:
    asked = [[f"printer {number}", f"invoice {number}"] for number in range(12)]
    alone = [_ask(client, prompts).json() for prompts in asked]
    steps, tokens = _steps(client)
    with ThreadPoolExecutor(len(asked) + 1) as pool:
        long = pool.submit(_ask, client, ["portal " * 40] * 250)  # behind which the others wait
        _wait(lambda: _steps(client)[0] > steps, 300, "the first of the long request's steps")
        together = list(pool.map(lambda prompts: _ask(client, prompts).json(), asked))
        assert len(long.result().json()) == 250
    for one, other in zip(alone, together, strict=True):
        assert [row["response"] for row in one] == [row["response"] for row in other]
        assert [row["mean_logprob"] for row in one] == pytest.approx([row["mean_logprob"] for row in other], abs=1e-5)
    more_steps, more_tokens = (now - old for now, old in zip(_steps(client), (steps, tokens), strict=True))
    assert more_tokens / more_steps > 16  # of 32 places


@pytest.mark.integration
def test_more_prompts_than_a_batch_holds_are_all_answered_in_order(client: httpx.Client) -> None:
    asked = [f"portal {number}" for number in range(70)]
    rows = _ask(client, asked).json()
    assert [row["response"] for row in rows[60:65]] == [row["response"] for row in _ask(client, asked[60:65]).json()]
    assert len(rows) == 70


@pytest.mark.integration
@pytest.mark.parametrize(
    "bad",
    ["", " \n\t", None, 17, {"content": SECRET}, [SECRET]],
    ids=["empty", "blank", "null", "number", "object", "list"],
)
def test_a_bad_item_is_refused_and_its_neighbours_are_answered(client: httpx.Client, bad: Any) -> None:
    good = [[f"invoice {number}"] for number in range(7)]
    with ThreadPoolExecutor(8) as pool:
        refused = pool.submit(_ask, client, ["invoice", bad])
        replies = list(pool.map(lambda prompts: _ask(client, prompts), good))
    assert refused.result().status_code == 400
    assert refused.result().json()["detail"][0]["loc"][:2] == ["prompts", 1]
    assert [reply.status_code for reply in replies] == [200] * 7


@pytest.mark.integration
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"prompts": []}',
        b'{"prompts": "' + SECRET.encode() + b'"}',
        b'{"prompts": ["a"], "x": "' + SECRET.encode() + b'"}',
        b'{"prompts": ["\xff' + SECRET.encode() + b'"]}',
        b'{"prompts": ["\\ud800 ' + SECRET.encode() + b'"]}',
        b'{"prompts": ["' + SECRET.encode(),
    ],
)
def test_a_request_of_the_wrong_shape_is_a_400(client: httpx.Client, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    reply = client.post("/generate", content=body, headers=headers)
    assert reply.status_code == 400, reply.text


@pytest.mark.integration
def test_the_servers_log_holds_no_prompt(client: httpx.Client, server: Server, prompts: list[str]) -> None:
    for bad in ([SECRET], [SECRET, ""], [{"content": SECRET}], SECRET, [[SECRET]]):
        _ask(client, bad)
    _ask(client, prompts)
    written = server.log.read_text()
    assert "path=/generate" in written  # it does log
    assert SECRET not in written
    assert not [prompt for prompt in prompts[:4] if prompt.strip() in written]


@pytest.mark.integration
def test_it_has_health_and_metrics_and_listens_on_loopback_only(client: httpx.Client, server: Server) -> None:
    for path in ("/livez", "/readyz", "/healthz", "/metrics"):
        assert client.get(path).status_code == 200
    family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    listening = {c.laddr.ip for p in family for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}
