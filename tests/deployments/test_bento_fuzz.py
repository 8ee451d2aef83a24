"""2,000 requests made of the service's own OpenAPI, right and wrong: none breaks it, and none harms a neighbour."""

import threading
from collections import Counter
from typing import Any

import httpx
import pytest
import requests
from hypothesis import HealthCheck, Phase, given, settings, strategies
from hypothesis import seed as seeded

schemathesis = pytest.importorskip("schemathesis")

CASES = 500  # of each address and kind


@pytest.fixture
def neighbour(client: httpx.Client) -> Any:
    """Asks good requests, five a second, all the while, and returns at the end how many were answered as before."""
    asked = ["invoice", "printer"]
    good = [row["response"] for row in client.post("/generate", json={"prompts": asked}).json()]
    ended, found = threading.Event(), Counter[Any]()

    def ask() -> None:
        while not ended.wait(0.2):
            reply = client.post("/generate", json={"prompts": asked})
            found[reply.status_code, [row["response"] for row in reply.json()] == good] += 1

    thread = threading.Thread(target=ask)
    thread.start()

    def stop() -> Counter[Any]:
        ended.set()
        thread.join()
        return found

    yield stop
    stop()


@pytest.mark.integration
@pytest.mark.slow
def test_2000_requests_made_of_the_openapi_get_an_answer_or_a_4xx_with_a_reason(
    client: httpx.Client, neighbour: Any
) -> None:
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    modes = list(schemathesis.GenerationMode)
    operations = [operation.ok() for operation in schema.get_all_operations()]
    assert {operation.path for operation in operations} == {"/generate", "/stream"}
    statuses: dict[tuple[str, str], Counter[int]] = {}
    for operation in operations:
        for mode in modes:
            statuses[operation.path, mode.value] = _fuzz(str(client.base_url), operation.as_strategy(mode))
    assert sum(found.total() for found in statuses.values()) >= 4 * CASES
    for (_, mode), found in statuses.items():
        kind = found[200] + found[504] if mode == "positive" else found[400]
        assert kind > CASES / 2, statuses
    assert client.get("/readyz").status_code == 200
    assert list(neighbour()) == [(200, True)]


def _fuzz(url: str, cases: strategies.SearchStrategy[Any]) -> Counter[int]:
    """Send CASES requests and return how often each status came; a bad answer fails with the request that got it."""
    found, session = Counter[int](), requests.Session()

    def send(case: Any) -> None:
        if found.total() >= CASES:
            return
        reply = case.call(base_url=url, session=session)
        found[reply.status_code] += 1
        missed = reply.status_code == 504 and "deadline_ms" in case.body  # which it set itself, to 1 ms say
        assert reply.status_code == 200 or 400 <= reply.status_code < 500 or missed
        if reply.status_code != 200:
            assert reply.json()["error"]

    options: dict[str, Any] = {"deadline": None, "database": None, "phases": [Phase.generate]}
    asked = settings(max_examples=CASES, suppress_health_check=list(HealthCheck), **options)
    while found.total() < CASES:  # Hypothesis ends early where it finds nothing new
        before = found.total()
        seeded(before)(asked(given(case=cases)(send)))()
        assert found.total() > before
    return found
