"""Several real SGLang servers, or one that fails: no row is lost, none comes twice, none is wrong."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.sglang.server import Options, Served
from distill.buying import obtain
from distill.errors import Failure
from distill.signals import SignalStore
from distill.teachers.local import LocalTeacher
from tests.distill.sglang_servers import (
    KEY,
    NEW,
    K,
    Restartable,
    alive,
    asked,
    has_router,
    prompts_of,
    proxy,
    router,
    teacher_at,
    update,
)

pytestmark = [pytest.mark.sglang, pytest.mark.integration]
WAIT = 600.0  # seconds, for a server that starts on a busy machine


@pytest.fixture(scope="module")
def other(teacher_checkpoint: Path, free_port: Callable[[], int]) -> Iterator[Restartable]:
    """Return a second server, with the same weights and key."""
    options = Options(str(teacher_checkpoint), port=free_port(), hidden_states="float32", api_key=KEY)
    server = Restartable(options)
    yield server
    server.close()


@pytest.fixture(scope="module")
def right(teacher_checkpoint: Path) -> dict[int, Any]:
    """Return the answers to prompts_of(checkpoint, 160), by the model in process."""
    return asked(LocalTeacher(teacher_checkpoint, top_k=K, max_new_tokens=NEW), prompts_of(teacher_checkpoint, 160))


def same(found: dict[int, Any], right: dict[int, Any]) -> bool:
    return all(signal.answer.tolist() == right[row].answer.tolist() for row, signal in found.items())


class TestKilled:
    def test_the_only_server_is_waited_for_and_no_row_is_lost(
        self, other: Restartable, teacher_checkpoint: Path, tmp_path: Path
    ) -> None:
        prompts, store = prompts_of(teacher_checkpoint, 120), SignalStore(tmp_path / "signals")
        back = []

        def kill(answered: int, whole: int) -> None:
            if answered == 15:
                back.append(other.kill())

        teacher = teacher_at(teacher_checkpoint, [other.served.url], concurrency=4, outage_seconds=WAIT)
        found = obtain(store, teacher, prompts, progress=kill, flush_rows=5)
        back[0].result(WAIT)
        assert (found.bought_rows, len(store)) == (len(prompts), len(prompts))
        assert teacher.spent.retries > 0
        assert teacher.spent.waited_seconds > 0

    def test_of_two_servers_one_is_left_alone_and_asked_again_once_it_is_back(
        self, teacher_server: Served, other: Restartable, teacher_checkpoint: Path, right: dict[int, Any]
    ) -> None:
        back, spent = [], []

        def kill(answered: int, whole: int) -> None:
            if answered == 20:
                back.append(other.kill())
            if answered == 100:  # nothing more is asked for while nobody reads
                spent.append(teacher.spent.retries)
                back[0].result(WAIT)

        teacher = teacher_at(teacher_checkpoint, [teacher_server.url, other.served.url], concurrency=8)
        found = asked(teacher, prompts_of(teacher_checkpoint, 160), kill)
        assert same(found, right)
        assert 0 < spent[0] < 30  # those under way, then one at a time
        assert "POST /generate" in other.served.log.read_text("utf-8", "replace")
        assert alive(teacher_server)


class TestSlow:
    def test_a_server_that_stalls_holds_nothing_up_for_longer_than_a_request_may_take(
        self, teacher_server: Served, other: Restartable, teacher_checkpoint: Path, right: dict[int, Any]
    ) -> None:
        with ExitStack() as stalled:

            def stall(answered: int, whole: int) -> None:
                if answered == 20:
                    stalled.enter_context(other.stalled())

            urls = [teacher_server.url, other.served.url]
            teacher = teacher_at(teacher_checkpoint, urls, concurrency=8, request_seconds=5.0)
            found = asked(teacher, prompts_of(teacher_checkpoint, 160), stall)
        assert same(found, right)
        assert teacher.spent.retries > 0
        assert alive(teacher_server)
        assert alive(other.served)

    @pytest.mark.parametrize(
        ("limits", "told"),
        [({"request_seconds": 1.0, "outage_seconds": 60.0}, "request_seconds"), ({"job_seconds": 5.0}, "job_seconds")],
    )
    def test_where_no_other_answers_the_job_ends_at_its_limit_with_what_to_do(
        self, limits: dict[str, float], told: str, other: Restartable, teacher_checkpoint: Path
    ) -> None:
        came, began = [], time.monotonic()
        teacher = teacher_at(teacher_checkpoint, [other.served.url], concurrency=2, **limits)
        with ExitStack() as stalled:

            def stall(answered: int, whole: int) -> None:
                if answered == 1:
                    stalled.enter_context(other.stalled())
                came.append(answered)

            with pytest.raises(Failure, match=told):
                asked(teacher, prompts_of(teacher_checkpoint, 160), stall)
        assert 0 < len(came) < 160
        assert time.monotonic() - began < 120
        assert alive(other.served)

    def test_a_reply_that_trickles_in_does_not_outlive_its_request(
        self, teacher_server: Served, teacher_checkpoint: Path
    ) -> None:
        began = time.monotonic()
        with proxy(teacher_server, lambda number: "trickle") as slow:
            teacher = teacher_at(teacher_checkpoint, [slow.url], request_seconds=1.0)
            with pytest.raises(Failure, match="request_seconds"):
                asked(teacher, prompts_of(teacher_checkpoint, 1))
        assert time.monotonic() - began < 60
        assert alive(teacher_server)

    def test_the_faster_of_two_is_asked_more_often(
        self, teacher_server: Served, teacher_checkpoint: Path, right: dict[int, Any]
    ) -> None:
        with proxy(teacher_server, lambda _: "slow") as slow, proxy(teacher_server, lambda _: "") as fast:
            teacher = teacher_at(teacher_checkpoint, [slow.url, fast.url], concurrency=4)
            found = asked(teacher, prompts_of(teacher_checkpoint, 160))
        assert same(found, right)
        assert teacher.spent.requests == slow.asked + fast.asked == 160
        assert fast.asked > 1.5 * slow.asked > 0


class TestRouter:
    @pytest.fixture(scope="class")
    def routed(
        self,
        teacher_server: Served,
        other: Restartable,
        tmp_path_factory: pytest.TempPathFactory,
        free_port: Callable[[], int],
    ) -> Iterator[str]:
        if not has_router():
            pytest.skip("SGLang's environment has no sglang-router: make sglang-cpu")
        log = tmp_path_factory.mktemp("router") / "router.log"
        with router([teacher_server.url, other.served.url], log, (free_port(), free_port())) as url:
            yield url

    def test_answers_through_it_are_those_of_the_servers(
        self, routed: str, other: Restartable, teacher_checkpoint: Path, right: dict[int, Any]
    ) -> None:
        found = asked(teacher_at(teacher_checkpoint, [routed]), prompts_of(teacher_checkpoint, 160))
        assert same(found, right)
        for row, signal in found.items():
            assert (signal.ids[:, 0] == right[row].ids[:, 0]).all()
            np.testing.assert_allclose(signal.tail, right[row].tail, atol=1e-5)
        assert "POST /generate" in other.served.log.read_text("utf-8", "replace")

    def test_hidden_states_through_it_are_those_of_a_server(
        self, routed: str, teacher_server: Served, teacher_checkpoint: Path
    ) -> None:
        prompts = prompts_of(teacher_checkpoint, 8)
        through, direct = (
            asked(teacher_at(teacher_checkpoint, [url], signals_format="hidden:bf16"), prompts)
            for url in (routed, teacher_server.url)
        )
        for row, signal in direct.items():
            np.testing.assert_allclose(through[row].states, signal.states, atol=1e-5 * np.abs(signal.states).max())

    def test_other_weights_on_one_server_behind_it_end_the_job(
        self,
        routed: str,
        other: Restartable,
        teacher_checkpoint: Path,
        tmp_path: Path,
        checkpoint_maker: Callable[..., Path],
    ) -> None:
        changed = checkpoint_maker(tmp_path / "other", seed=7, context=1024)

        def change(done: int, whole: int) -> None:
            if done == 20:
                update(other.served, changed)

        try:
            with pytest.raises(Failure, match="expected the weights"):
                asked(
                    teacher_at(teacher_checkpoint, [routed], concurrency=4), prompts_of(teacher_checkpoint, 160), change
                )
        finally:
            update(other.served, teacher_checkpoint)
        assert alive(other.served)
