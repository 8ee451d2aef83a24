"""A Bento holds the student and nothing else, and when served it answers as the checkpoint does."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from deployments.bento import process, smoke
from deployments.bento.build import Bento, build
from deployments.bento.smoke import Server, serve, smoke_test
from deployments.errors import Failure, InputError
from deployments.settings import PackagingSettings

PROMPTS = [
    "The printer on floor three is on fire.",
    "My invoice is wrong, please help.",
    "portal " * 40,  # longer than MAX_PROMPT
    "Grüße, я не могу войти ☂",
    "x",
]
SECRET = "zanzibar-4711"
MAX_PROMPT, MAX_NEW = 24, 12
CLIENT = httpx.Client(trust_env=False, timeout=60)
TEMPLATE = "{% for m in messages %}<user>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a byte-level BPE tokenizer, and files beside it that are none of a Bento's business."""
    folder = tmp_path_factory.mktemp("student") / "checkpoint"
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<pad>", "<eos>", "<user>", "<bot>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    bpe.train_from_iterator(["A printer is broken.", "Help with an invoice.", "The portal is closed."], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", eos_token="<eos>", chat_template=TEMPLATE
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 8,  # a padded output layer
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,  # far from ties
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for stray in ("train.jsonl", "trainer_state.json", "server.log", "notes.txt"):
        (folder / stray).write_text(SECRET + "\n".join(PROMPTS), "utf-8")
    return folder


def _build(checkpoint: Path, home: Path, log: Callable[[str], None] = print, **changes: Any) -> Bento:
    arguments: dict[str, Any] = {
        "student": "tiny",
        "model_version": "7",
        "retrain_id": "r0a1b2",
        "max_prompt_tokens": MAX_PROMPT,
        "max_new_tokens": MAX_NEW,
        "labels": {"window": "2016-01-01..2017-01-01"},
        # A loaded machine is slow; a request that waits longer than this is answered with 503.
        "settings": PackagingSettings(max_latency_ms=60_000),
    }
    return build(checkpoint, home=home, log=log, **arguments | changes)


@pytest.fixture(scope="session")
def bento(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bento:
    return _build(checkpoint, tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def server(bento: Bento) -> Iterator[Server]:
    with serve(bento, timeout=120) as server:
        yield server


def _reference(checkpoint: Path, prompt: str) -> tuple[str, float]:
    """Answer one prompt by a plain loop over the model's logits: no padding, no batch, no generate()."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    user, bot = tokenizer.convert_tokens_to_ids(["<user>", "<bot>"])
    text = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    tokens = [user, *text[-(MAX_PROMPT - 2) :], bot]
    answer: list[int] = []
    logprobs: list[float] = []
    while len(answer) < MAX_NEW and (not answer or answer[-1] != tokenizer.eos_token_id):
        with torch.no_grad():
            logits = model(torch.tensor([tokens + answer])).logits[0, -1, : len(tokenizer)]
        best = logits.log_softmax(-1).max(-1)
        answer.append(int(best.indices))
        logprobs.append(float(best.values))
    return tokenizer.decode(answer, skip_special_tokens=True), sum(logprobs) / len(logprobs)


def _ask(server: Server, prompts: Any) -> httpx.Response:
    return CLIENT.post(f"{server.url}/generate", json={"prompts": prompts})


def _batches(server: Server) -> tuple[int, int]:
    """Return how many batches were served so far, and how many requests were in them."""
    text = CLIENT.get(f"{server.url}/metrics").text
    lines = [line for line in text.splitlines() if line.startswith("bentoml_service_adaptive_batch_size_")]
    count, total = ([line for line in lines if f"size_{kind}{{" in line] for kind in ("count", "sum"))
    return (int(float(count[0].split()[-1])), int(float(total[0].split()[-1]))) if count else (0, 0)


def _wait(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        pause.wait(0.05)


# --- what is in it ---------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_a_bento_holds_the_checkpoint_the_service_and_its_limits_and_no_prompt(bento: Bento) -> None:
    source = bento.path / "src"
    assert {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()} == {
        "bentofile.yaml",
        "service.py",
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
        for private in (SECRET, *PROMPTS[:4], str(bento.path.parents[3])):
            assert private.strip().encode() not in content, f"{private!r} is in {path}"


@pytest.mark.integration
def test_a_bento_pins_what_is_installed_without_the_suffix_of_a_local_build(bento: Bento) -> None:
    pins = (bento.path / "env" / "python" / "requirements.txt").read_text().split()
    assert f"torch=={torch.__version__.partition('+')[0]}" in pins
    assert all("==" in pin and "+" not in pin for pin in pins)
    assert {"bentoml", "numpy", "safetensors", "transformers"} <= {pin.partition("==")[0] for pin in pins}


@pytest.mark.integration
def test_building_again_returns_the_same_bento_and_installs_nothing(checkpoint: Path, bento: Bento) -> None:
    before = (bento.path / "bento.yaml").stat()
    lines: list[str] = []
    assert _build(checkpoint, bento.path.parents[2], lines.append) == bento
    assert lines == ["Bento tiny:7-r0a1b2 is there already"]
    assert (bento.path / "bento.yaml").stat().st_ino == before.st_ino


@pytest.mark.integration
def test_a_damaged_or_outdated_bento_is_built_anew_and_nothing_else_is_left(checkpoint: Path, tmp_path: Path) -> None:
    bento = _build(checkpoint, tmp_path)
    weights = bento.path / "src" / "checkpoint" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert _build(checkpoint, tmp_path) == bento
    assert weights.read_bytes() == (checkpoint / "model.safetensors").read_bytes()
    lines: list[str] = []
    _build(checkpoint, tmp_path, lines.append, max_new_tokens=3)
    assert json.loads((bento.path / "src" / "model.json").read_text())["max_new_tokens"] == 3
    assert not any("uv" in line for line in lines), lines
    assert list((tmp_path / "tmp").iterdir()) == []
    assert {path.name for path in bento.path.parent.iterdir()} == {"7-r0a1b2", "latest"}


@pytest.mark.integration
def test_a_failed_build_names_the_bento_and_the_reason_and_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "bentos").write_text("a file where the store should be")
    with pytest.raises(Failure, match=r"tiny:7-r0a1b2(.|\n)*(NotADirectory|FileExists)Error"):
        _build(checkpoint, tmp_path)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_checkpoint_without_a_shard_is_refused_by_name(checkpoint: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (broken / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (broken / "model.safetensors").rename(broken / shards["a"])
    with pytest.raises(InputError, match=r"lacks 1 of 2 weight files .model-00002-of-00002"):
        _build(broken, tmp_path / "store")
    (broken / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"has no tokenizer\.json"):
        _build(broken, tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student": "tiny-"}, r"student\.name 'tiny-' cannot name a Bento"),
        ({"retrain_id": "x" * 80}, "version '7-xxx"),
        ({"settings": PackagingSettings(max_batch_size=1)}, r"packaging\.max_batch_size = 1"),
    ],
)
def test_what_bentoml_cannot_take_is_refused_before_the_build(
    checkpoint: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        _build(checkpoint, tmp_path / "store", **change)
    assert not (tmp_path / "store").exists()


# --- what it answers -------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_served_answers_and_log_probabilities_are_the_checkpoints(checkpoint: Path, server: Server) -> None:
    rows = _ask(server, PROMPTS).json()
    for prompt, row in zip(PROMPTS, rows, strict=True):
        response, mean_logprob = _reference(checkpoint, prompt)
        assert row == {
            "response": response,
            "mean_logprob": pytest.approx(mean_logprob, abs=1e-5),
            "model_version": "7",
        }
    assert len({row["response"] for row in rows}) == len(PROMPTS)  # else the test could not tell them apart


@pytest.mark.integration
def test_concurrent_requests_are_batched_and_each_gets_its_own_answers(server: Server) -> None:
    asked = [[f"printer {number}", f"invoice {number}"] for number in range(12)]
    alone = [_ask(server, prompts).json() for prompts in asked]
    batches, requests = _batches(server)
    with ThreadPoolExecutor(len(asked) + 1) as pool:
        long = pool.submit(_ask, server, ["portal " * 40] * 320)  # ten batches, behind which the others gather
        _wait(lambda: _batches(server)[0] > batches, 60, "the first of the long request's batches")
        together = list(pool.map(lambda prompts: _ask(server, prompts).json(), asked))
        assert len(long.result().json()) == 320
    for one, other in zip(alone, together, strict=True):
        assert [row["response"] for row in one] == [row["response"] for row in other]
        assert [row["mean_logprob"] for row in one] == pytest.approx([row["mean_logprob"] for row in other], abs=1e-5)
    more_batches, more_requests = (now - old for now, old in zip(_batches(server), (batches, requests), strict=True))
    assert more_requests == 10 + len(asked)  # a request counts in each batch that has a part of it
    assert more_batches - 10 <= len(asked) // 2


@pytest.mark.integration
def test_more_prompts_than_a_batch_holds_are_all_answered_in_order(server: Server) -> None:
    asked = [f"portal {number}" for number in range(70)]
    rows = _ask(server, asked).json()
    assert [row["response"] for row in rows[60:65]] == [row["response"] for row in _ask(server, asked[60:65]).json()]
    assert len(rows) == 70


@pytest.mark.integration
@pytest.mark.parametrize(
    "bad",
    ["", " \n\t", None, 17, {"content": SECRET}, [SECRET]],
    ids=["empty", "blank", "null", "number", "object", "list"],
)
def test_a_bad_item_is_refused_and_its_neighbours_are_answered(server: Server, bad: Any) -> None:
    good = [[f"invoice {number}"] for number in range(7)]
    with ThreadPoolExecutor(8) as pool:
        refused = pool.submit(_ask, server, ["invoice", bad])
        replies = list(pool.map(lambda prompts: _ask(server, prompts), good))
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
def test_a_request_of_the_wrong_shape_is_a_400(server: Server, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    reply = CLIENT.post(f"{server.url}/generate", content=body, headers=headers)
    assert reply.status_code == 400, reply.text


@pytest.mark.integration
def test_the_servers_log_holds_no_prompt(server: Server) -> None:
    for prompts in ([SECRET], [SECRET, ""], [{"content": SECRET}], SECRET, [[SECRET]]):
        _ask(server, prompts)
    written = server.log.read_text()
    assert "path=/generate" in written  # it does log
    assert SECRET not in written
    assert not [prompt for prompt in PROMPTS[:4] if prompt.strip() in written]


@pytest.mark.integration
def test_it_has_health_and_metrics_and_listens_on_loopback_only(server: Server) -> None:
    for path in ("/livez", "/readyz", "/healthz", "/metrics"):
        assert CLIENT.get(server.url + path).status_code == 200
    family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    listening = {c.laddr.ip for p in family for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}


# --- the smoke test --------------------------------------------------------------------------------------------


def _serving(bento: Bento) -> list[psutil.Process]:
    """Return the processes that serve this Bento (workers carry its path in their command line too)."""
    found = []
    for candidate in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(bento.path) in candidate.cmdline() and candidate.status() != psutil.STATUS_ZOMBIE:
                found.append(candidate)
    return found


@pytest.fixture
def other(bento: Bento, tmp_path: Path) -> Bento:
    """The same Bento at a place of its own, so that its processes can be told from those of `server`."""
    shutil.copytree(bento.path, tmp_path / "other")
    return Bento(bento.tag, tmp_path / "other")


@pytest.mark.integration
def test_the_smoke_test_agrees_with_the_librarys_own_scores_and_leaves_nothing(checkpoint: Path, other: Bento) -> None:
    from distill.scoring import score

    scores = score(checkpoint, PROMPTS, max_prompt_tokens=MAX_PROMPT, max_new_tokens=MAX_NEW, device="cpu")
    assert scores.truncated >= 1
    before = {path: path.stat().st_mtime_ns for path in other.path.rglob("*")}
    result = smoke_test(other, PROMPTS, scores.responses, model_version="7", timeout=120)
    assert result.agreed == len(PROMPTS)
    assert result.answers == scores.responses
    assert result.mean_logprob == pytest.approx(scores.mean_logprob, abs=1e-5)
    assert 0 < result.seconds_to_ready < 120
    assert _serving(other) == []
    assert {path: path.stat().st_mtime_ns for path in other.path.rglob("*")} == before


@pytest.mark.integration
def test_answers_that_differ_fail_the_smoke_test_by_number_and_leave_nothing(server: Server, other: Bento) -> None:
    expected = [row["response"] for row in _ask(server, PROMPTS).json()]
    expected[1] = expected[3] = "something else"
    with pytest.raises(Failure, match="answers 2 of 5 smoke prompts otherwise") as raised:
        smoke_test(other, PROMPTS, expected, model_version="7", timeout=120)
    assert not [text for text in (*PROMPTS[:4], *expected) if text in str(raised.value)]
    assert _serving(other) == []


def test_a_bento_of_another_model_version_fails_the_smoke_test() -> None:
    bento = Bento("tiny:7-r0", Path("nowhere"))
    reply = httpx.Response(200, json=[{"response": "a", "mean_logprob": -1.0, "model_version": "6"}])
    with pytest.raises(Failure, match="says it is model version 6, not 7"):
        smoke._check_answers(bento, reply, ["a"], "7")
    with pytest.raises(Failure, match="status 503"):
        smoke._check_answers(bento, httpx.Response(503), ["a"], "7")


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def test_a_taken_port_is_refused_before_anything_starts(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "start", lambda *_, **__: pytest.fail("a server was started"))
    with pytest.raises(InputError, match=rf"packaging\.port = {taken}: .*in use"):
        smoke_test(Bento("tiny:7", Path("nowhere")), ["a"], ["b"], model_version="7", port=taken)


@pytest.mark.integration
def test_a_port_that_is_taken_meanwhile_is_named(other: Bento, taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoke, "_free_port", lambda _: taken)
    with pytest.raises(Failure, match=rf"port {taken} was taken meanwhile.*packaging\.port"):
        smoke_test(other, ["a"], ["b"], model_version="7", timeout=120)
    assert _serving(other) == []


@pytest.mark.integration
def test_a_bento_whose_worker_dies_fails_with_its_reason_before_the_deadline(other: Bento) -> None:
    (other.path / "src" / "checkpoint" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(Failure, match=r"could not be served(.|\n)*safetensors"):
        smoke_test(other, ["a"], ["b"], model_version="7", timeout=300)
    assert _serving(other) == []


@pytest.mark.integration
def test_a_server_that_is_not_ready_in_time_is_ended(other: Bento) -> None:
    with pytest.raises(Failure, match=r"not ready after packaging\.timeout = 0\.5 s"):
        smoke_test(other, ["a"], ["b"], model_version="7", timeout=0.5)
    assert _serving(other) == []


# --- a parent that is killed -----------------------------------------------------------------------------------

SERVING = """
import sys
import threading
from pathlib import Path
from deployments.bento.build import Bento
from deployments.bento.smoke import serve
with serve(Bento("tiny:7", Path(sys.argv[1])), timeout=300):
    sys.stdin.read()
"""

BUILDING = """
import sys
import threading
from pathlib import Path
from deployments.bento.build import build
from deployments.settings import PackagingSettings
build(Path(sys.argv[1]), student="tiny", model_version="7", retrain_id="r0", max_prompt_tokens=8, max_new_tokens=8,
      labels={}, settings=PackagingSettings(), home=Path(sys.argv[2]), log=print)
"""


def _kill(parent: "subprocess.Popen[bytes]", when: Callable[[list[psutil.Process]], bool]) -> None:
    """SIGKILL a process once its descendants are such, and wait until none of them is left."""
    children: list[psutil.Process] = []

    def is_time() -> bool:
        assert parent.poll() is None, "it ended before it could be killed"
        children[:] = psutil.Process(parent.pid).children(recursive=True)
        return when(children)

    try:
        _wait(is_time, 60, "the moment to kill")
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    _, left = psutil.wait_procs(children, timeout=60)
    assert left == []


@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="the death signal of a parent is Linux's")
def test_nothing_is_left_of_a_server_whose_parent_is_killed(other: Bento) -> None:
    command = [sys.executable, "-c", SERVING, str(other.path)]
    parent = subprocess.Popen(command, stdin=subprocess.PIPE)
    _kill(parent, lambda children: len(children) >= 2)  # the server and its worker
    _wait(lambda: _serving(other) == [], 10, "no server left")


@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="the death signal of a parent is Linux's")
def test_nothing_is_left_of_a_build_whose_parent_is_killed(checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", BUILDING, str(checkpoint), str(tmp_path)]
    parent = subprocess.Popen(command)
    _kill(parent, lambda _: any((tmp_path / "tmp").glob("build-*/home")))  # BentoML is at work
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not (tmp_path / "bentos").exists()
