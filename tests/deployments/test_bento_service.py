"""The served Bento refuses what is bad with a reason, streams what it answers, and keeps to deadlines and its key."""

import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.bento.build import Bento
from deployments.bento.smoke import Server, serve, smoke_test
from deployments.errors import Failure
from deployments.settings import PackagingSettings

pytestmark = pytest.mark.integration

BuildBento = Callable[..., Bento]
SECRET = "zanzibar-4711"
JSON = {"content-type": "application/json"}


def _wait(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        pause.wait(0.05)


def _post(client: httpx.Client, body: bytes, path: str = "/generate", **headers: str) -> httpx.Response:
    return client.post(path, content=body, headers=JSON | headers)


def _metric(client: httpx.Client, line: str) -> float:
    """Return the value of a metric, 0 when it was never counted; `line` is its name and labels."""
    lines = [each.rpartition(" ") for each in client.get("/metrics").text.splitlines()]
    return sum(float(value) for name, _, value in lines if name == line)


def _events(client: httpx.Client, **body: Any) -> list[tuple[str, dict[str, Any]]]:
    with client.stream("POST", "/stream", json=body) as reply:
        assert reply.status_code == 200
        assert reply.headers["content-type"].startswith("text/event-stream")
        blocks = "".join(reply.iter_text()).strip().split("\n\n")
    pairs = (block.split("\n", 1) for block in blocks)
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in pairs]


# --- bad bodies ------------------------------------------------------------------------------------------------

BAD = {
    "empty": (b"", 400, "the body"),
    "not JSON": (b"{", 400, "the body"),
    "not UTF-8": (b'{"prompts": ["\xff' + SECRET.encode() + b'"]}', 400, "not UTF-8, from byte 14"),
    "a raw null byte": (b'{"prompts": ["\0"]}', 400, "the body"),
    "an escaped null byte": (
        b'{"prompts": ["a", "\\u0000' + SECRET.encode() + b'"]}',
        400,
        "prompts.1: holds a null byte",
    ),
    "half a surrogate": (b'{"prompts": ["\\ud800"]}', 400, "the body"),
    "nested 100,000 deep": (b"[" * 100_000, 400, "the body"),
    "nested in its place": (b'{"prompts": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, ""),
    "objects nested": (b'{"prompts": ' + b'{"a":' * 50_000, 400, "the body"),
    "a huge number": (b'{"prompts": ["a"], "max_new_tokens": ' + b"9" * 50_000 + b"}", 400, ""),
    "a number that is none": (b'{"prompts": ["a"], "deadline_ms": NaN}', 400, ""),
    "no prompts": (b'{"prompts": []}', 400, "prompts"),
    "too many prompts": (json.dumps({"prompts": ["a"] * 257}).encode(), 400, "prompts"),
    "a prompt too long": (json.dumps({"prompts": ["a", "b" * 20_001]}).encode(), 400, "prompts.1"),
    "more tokens than there may be": (b'{"prompts": ["a"], "max_new_tokens": 13}', 400, "max_new_tokens"),
    "no tokens": (b'{"prompts": ["a"], "max_new_tokens": 0}', 400, "max_new_tokens"),
    "a deadline too late": (b'{"prompts": ["a"], "deadline_ms": 60001}', 400, "deadline_ms"),
    "an unknown field": (b'{"prompts": ["a"], "' + SECRET.encode() + b'": 1}', 400, "(unknown field)"),
    "oversized": (b'{"prompts": ["' + b"a" * 8_000_000 + b'"]}', 413, "longer than 8000000 bytes"),
}


@pytest.mark.parametrize("path", ["/generate", "/stream"])
@pytest.mark.parametrize(("body", "status", "reason"), BAD.values(), ids=BAD)
def test_a_bad_body_is_refused_with_a_reason_that_quotes_nothing(
    client: httpx.Client, path: str, body: bytes, status: int, reason: str
) -> None:
    reply = _post(client, body, path)
    assert reply.status_code == status
    assert reason in reply.json()["error"]
    assert SECRET not in reply.text


def test_a_body_that_says_it_is_no_json_is_refused(client: httpx.Client) -> None:
    for kind in ("application/vnd.bentoml+pickle", "multipart/form-data; boundary=x", "text/plain"):
        assert client.post("/generate", content=b"x", headers={"content-type": kind}).status_code == 415


def test_bad_bodies_all_at_once_are_all_refused_and_good_requests_beside_them_are_answered(
    client: httpx.Client,
) -> None:
    good = client.post("/generate", json={"prompts": ["invoice", "printer"]}).json()
    bodies = [body for body, *_ in BAD.values() if len(body) < 1_000_000] * 4
    with ThreadPoolExecutor(16) as pool:
        bad = [pool.submit(_post, client, body) for body in bodies]
        beside = [pool.submit(client.post, "/generate", json={"prompts": ["invoice", "printer"]}) for _ in range(20)]
        assert {reply.result().status_code for reply in bad} == {400}
        answers = [reply.result().json() for reply in beside]
    assert all([row["response"] for row in rows] == [row["response"] for row in good] for rows in answers)


def test_a_client_that_leaves_in_the_middle_of_its_body_harms_nobody(client: httpx.Client, server: Server) -> None:
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
    assert client.post("/generate", json={"prompts": ["a"]}).status_code == 200


# --- what may be asked -----------------------------------------------------------------------------------------


def test_fewer_tokens_are_the_beginning_of_the_answer(client: httpx.Client, prompts: list[str]) -> None:
    whole = _metric(client, 'student_tokens_total{direction="out"}')
    client.post("/generate", json={"prompts": prompts, "max_new_tokens": 3}).raise_for_status()
    assert _metric(client, 'student_tokens_total{direction="out"}') - whole <= 3 * len(prompts)


def test_a_request_that_misses_its_deadline_gets_504_and_leaves_its_places(client: httpx.Client) -> None:
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(client.post, "/generate", json={"prompts": ["portal " * 40] * 256})
        _wait(lambda: _metric(client, "student_running_prompts") > 0, 60, "the long request at work")
        reply = client.post("/generate", json={"prompts": ["invoice"], "deadline_ms": 1})
        assert reply.status_code == 504
        assert "deadline_ms" in reply.json()["error"]
        assert long.result().status_code == 200
    _wait(lambda: _metric(client, "student_running_prompts") == 0, 60, "no row left")
    assert _metric(client, 'student_requests_total{endpoint="/generate",outcome="late"}') >= 1


# --- streaming -------------------------------------------------------------------------------------------------


def test_what_is_streamed_is_what_generate_answers(client: httpx.Client, prompts: list[str]) -> None:
    out = 'student_tokens_total{direction="out"}'
    before = _metric(client, out)
    whole = client.post("/generate", json={"prompts": prompts}).json()
    between = _metric(client, out)
    events = _events(client, prompts=prompts)
    assert _metric(client, out) - between == between - before > 0
    answers = {data["index"]: data for name, data in events if name == "answer"}
    assert sorted(data["index"] for name, data in events if name == "answer") == list(range(len(prompts)))
    for at, row in enumerate(whole):
        pieces = [data["text"] for name, data in events if name == "text" and data["index"] == at]
        assert "".join(pieces) == answers[at]["response"] == row["response"]
        assert answers[at]["mean_logprob"] == pytest.approx(row["mean_logprob"], abs=1e-5)
    assert max(len([1 for name, data in events if name == "text" and data["index"] == at]) for at in answers) > 2


def test_a_stream_past_its_deadline_ends_with_an_error(client: httpx.Client) -> None:
    name, data = _events(client, prompts=["portal " * 40] * 256, deadline_ms=60)[-1]
    assert (name, data["status"]) == ("error", 504)
    _wait(lambda: _metric(client, "student_running_prompts") == 0, 60, "no row left")


def test_a_client_that_leaves_frees_its_places(client: httpx.Client, server: Server) -> None:
    for path in ("/stream", "/generate"):
        gone = f'student_requests_total{{endpoint="{path}",outcome="gone"}}'
        before = _metric(client, gone)
        body = json.dumps({"prompts": ["portal " * 40] * 256}).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as connection:
            connection.sendall(head + body)
            _wait(lambda: _metric(client, "student_running_prompts") > 0, 60, "at work")
        _wait(lambda gone=gone, before=before: _metric(client, gone) > before, 60, "noticed")  # type: ignore[misc]
        _wait(lambda: _metric(client, "student_running_prompts") == 0, 60, "no row left")


def test_metrics_count_requests_tokens_and_waiting_and_hold_no_prompt(client: httpx.Client) -> None:
    names = ('student_requests_total{endpoint="/generate",outcome="answered"}', 'student_tokens_total{direction="in"}')
    before = [_metric(client, name) for name in names]
    client.post("/generate", json={"prompts": ["invoice", SECRET]}).raise_for_status()
    assert all(_metric(client, name) > value for name, value in zip(names, before, strict=True))
    text = client.get("/metrics").text
    for name in ("student_request_seconds_bucket", "student_wait_seconds_sum", "student_waiting_prompts"):
        assert name in text
    assert SECRET not in text


def test_the_description_tells_addresses_and_limits(client: httpx.Client) -> None:
    found = client.get("/docs.json").json()
    assert {"/generate", "/stream"} <= found["paths"].keys()
    body = client.get("/openapi.json").json()["paths"]["/generate"]["post"]["requestBody"]
    fields = body["content"]["application/json"]["schema"]["properties"]
    assert fields["prompts"]["maxItems"] == 256
    assert fields["max_new_tokens"]["maximum"] == 12


# --- key and weights -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keyed(build_bento: BuildBento, tmp_path_factory: pytest.TempPathFactory) -> Bento:
    settings = PackagingSettings(api_key_env="STUDENT_KEY", max_prompts=2)
    return build_bento(tmp_path_factory.mktemp("keyed"), settings=settings)


@pytest.fixture(scope="module")
def locked(keyed: Bento) -> Iterator[Server]:
    with serve(keyed, timeout=600) as server:
        yield server


def test_without_the_key_nothing_is_answered_but_health_and_metrics(locked: Server) -> None:
    with httpx.Client(base_url=locked.url, trust_env=False, timeout=60) as client:
        for key in ("", "Bearer", "Bearer wrong", f"Basic {locked.key}", f"Bearer {locked.key}x", "Bearer \xe9"):
            for path in ("/generate", "/stream"):
                reply = client.post(path, json={"prompts": ["a"]}, headers={"Authorization": key.encode("latin-1")})
                assert reply.status_code == 401
                assert reply.headers["www-authenticate"] == "Bearer"
        assert _post(client, b"{").status_code == 401  # before anything is read
        for scheme in ("Bearer", "bearer"):
            right = {"Authorization": f"{scheme} {locked.key}"}
            assert client.post("/generate", json={"prompts": ["a"]}, headers=right).status_code == 200
        assert [client.get(path).status_code for path in ("/livez", "/readyz", "/metrics")] == [200] * 3
    assert locked.key not in locked.log.read_text()


def test_the_smoke_test_of_a_bento_with_a_key_asks_with_one_in_requests_that_are_small_enough(
    keyed: Bento, client: httpx.Client, prompts: list[str]
) -> None:
    expected = [row["response"] for row in client.post("/generate", json={"prompts": prompts}).json()]
    assert smoke_test(keyed, prompts, expected, model_version="7", timeout=600).agreed == len(prompts)
    assert "STUDENT_KEY" not in os.environ


def test_a_bento_whose_key_is_not_set_is_not_served(keyed: Bento, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STUDENT_KEY", raising=False)
    with pytest.raises(Failure, match="STUDENT_KEY"), serve(keyed, timeout=600, own_key=False):
        pytest.fail("it is served")


@pytest.mark.parametrize("kind", ["changed", "truncated", "added", "another tokenizer"])
def test_a_checkpoint_that_is_not_what_was_packed_is_not_served_and_says_which_file(
    bento: Bento, tmp_path: Path, kind: str
) -> None:
    shutil.copytree(bento.path, tmp_path / "other")
    folder = tmp_path / "other" / "src" / "checkpoint"
    name = {"added": "extra.safetensors", "another tokenizer": "tokenizer.json"}.get(kind, "model.safetensors")
    content = (folder / name).read_bytes() if (folder / name).exists() else b""
    made = {
        "changed": content[:-1] + bytes([content[-1] ^ 1]) if content else b"",
        "truncated": content[: len(content) // 2],
        "added": b"x",
        "another tokenizer": content.replace(b"<user>", b"<USER>"),
    }
    (folder / name).write_bytes(made[kind])
    with (
        pytest.raises(Failure, match=rf"is not what was packed \({name}"),
        serve(Bento(bento.tag, tmp_path / "other"), timeout=600),
    ):
        pytest.fail("it is served")
