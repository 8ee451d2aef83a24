"""Rows join and leave a running batch, and each gets the answer that it would get alone."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.bento.serving.batches import Decoder, Overloaded, Row, _bucket
from deployments.bento.serving.engines import Past, TorchEngine
from deployments.bento.serving.text import Text

WORDS = ["The printer is broken.", "x", "Help with an invoice, please, it is wrong.", "portal " * 9, "Grüße ☂"]


class Gate:
    """A real engine whose steps can be held and made to fail: a fault that cannot be caused from outside."""

    def __init__(self, engine: TorchEngine) -> None:
        self.engine, self.open, self.fail = engine, threading.Event(), threading.Event()
        self.fail_decoding = False
        self.shapes: list[tuple[int, int]] = []  # (rows, new tokens) of each step
        self.open.set()

    def forward(self, tokens: Any, mask: Any, past: Past) -> Any:
        assert self.open.wait(60)
        if self.fail.is_set() or (self.fail_decoding and past is not None):
            raise MemoryError("no memory")
        self.shapes.append(tokens.shape)
        return self.engine.forward(tokens, mask, past)

    def merge(self, parts: list[tuple[Past, list[int]]], width: int) -> Past:
        return self.engine.merge(parts, width)


class Unseen:
    """Counts nothing."""

    def waiting(self, prompts: int, running: int) -> None: ...
    def waited(self, seconds: float) -> None: ...
    def stepped(self, rows: int) -> None: ...


@pytest.fixture(scope="module")
def text(student: Path) -> Text:
    return Text(student, 24)


@pytest.fixture(scope="module")
def engine(student: Path, text: Text) -> TorchEngine:
    return TorchEngine(student, text.vocabulary)


@pytest.fixture
def gate(engine: TorchEngine) -> Gate:
    return Gate(engine)


@pytest.fixture
def decoder(gate: Gate, text: Text) -> Iterator[Decoder]:
    made = Decoder(gate, stops=text.stops, pad=text.pad, max_batch_size=4, max_waiting=16, seen=Unseen())
    yield made
    gate.open.set()
    made.end()


class Asked:
    """A row that can be waited for."""

    def __init__(self, prompt: list[int], limit: int) -> None:
        self.grown, self.done = threading.Event(), threading.Event()
        self.row = Row(prompt, limit, self._told)

    def _told(self, row: Row) -> None:
        self.grown.set()
        if row.finished:
            self.done.set()

    def answer(self) -> list[int]:
        assert self.done.wait(60)
        assert self.row.failed is None
        return self.row.answer


def _alone(engine: TorchEngine, text: Text, prompt: list[int], limit: int) -> list[int]:
    mask = np.ones((1, len(prompt)), np.int64)
    best, _, past = engine.forward(np.array([prompt]), mask, None)
    answer = [int(best[0])]
    while len(answer) < limit and answer[-1] not in text.stops:
        mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
        best, _, past = engine.forward(best[:, None], mask, past)
        answer.append(int(best[0]))
    return answer


def test_whoever_comes_and_goes_meanwhile_each_row_gets_the_answer_that_it_gets_alone(
    decoder: Decoder, gate: Gate, engine: TorchEngine, text: Text
) -> None:
    prompts = text.encode(WORDS * 3)
    limits = [1 + 5 * at % 23 for at in range(len(prompts))]
    asked = [Asked(prompt, limit) for prompt, limit in zip(prompts, limits, strict=True)]
    decoder.submit([one.row for one in asked[:3]])
    asked[0].grown.wait(60)
    decoder.submit([one.row for one in asked[3:]])
    for one, prompt, limit in zip(asked, prompts, limits, strict=True):
        assert one.answer() == _alone(engine, text, prompt, limit)
    decode = [rows for rows, new in gate.shapes if new == 1]
    assert max(rows for rows, _ in gate.shapes) <= 4
    assert np.mean(decode) > 2  # places are filled again while others go on


def test_a_row_that_is_given_up_frees_its_place(decoder: Decoder, gate: Gate, text: Text) -> None:
    endless = [Asked(prompt, 10_000) for prompt in text.encode(["a", "b", "c", "d"])]
    waiting = Asked(text.encode(["e"])[0], 1)
    decoder.stops = frozenset()  # no answer ends by itself
    gate.open.clear()
    decoder.submit([one.row for one in endless])
    decoder.submit([waiting.row])
    endless[2].row.given_up = True
    gate.open.set()
    waiting.answer()
    assert not endless[0].row.finished
    for one in endless:
        one.row.given_up = True


def test_more_prompts_than_may_wait_are_refused_and_none_of_them_is_taken(
    decoder: Decoder, gate: Gate, text: Text
) -> None:
    gate.open.clear()
    first = [Asked(text.encode(["a"])[0], 2) for _ in range(16)]
    decoder.submit([one.row for one in first])
    with pytest.raises(Overloaded, match="prompts wait already"):
        decoder.submit([Asked(text.encode(["b"])[0], 2).row for _ in range(17)])
    gate.open.set()
    for one in first:
        one.answer()
    assert decoder.healthy(60)


def test_prompts_that_nobody_waits_for_any_more_keep_nobody_out(decoder: Decoder, gate: Gate, text: Text) -> None:
    gate.open.clear()
    answered, waiting = ([Asked(text.encode(["a"])[0], 2) for _ in range(count)] for count in (4, 16))
    decoder.submit([one.row for one in answered])
    _until(lambda: not decoder._waiting, threading.Event())
    decoder.submit([one.row for one in waiting])
    with pytest.raises(Overloaded):
        decoder.submit([Asked(text.encode(["b"])[0], 2).row])
    for one in waiting:
        one.row.given_up = True
    later = [Asked(text.encode(["b"])[0], 2) for _ in range(16)]
    decoder.submit([one.row for one in later])
    gate.open.set()
    for one in later:
        assert one.answer()


def test_a_row_that_was_finished_when_a_step_failed_has_its_answer_and_is_told_once(
    decoder: Decoder, gate: Gate, text: Text
) -> None:
    told: list[tuple[bool, bool]] = []
    prompt = text.encode(["a"])[0]
    short = Asked(prompt, 1)
    short.row.told = lambda row: told.append((row.finished, row.failed is not None))
    long = Asked(prompt, 10_000)
    decoder.stops = frozenset()
    gate.open.clear()
    decoder.submit([short.row, long.row])
    gate.fail_decoding = True  # the prompts are read together, and the first step after that fails
    gate.open.set()
    assert long.done.wait(60)
    assert isinstance(long.row.failed, MemoryError)
    assert told == [(True, False)]
    assert short.row.failed is None
    assert len(short.row.answer) == 1


def test_a_step_that_fails_fails_its_rows_and_the_next_are_answered(decoder: Decoder, gate: Gate, text: Text) -> None:
    gate.fail.set()
    broken = Asked(text.encode(["a"])[0], 4)
    decoder.submit([broken.row])
    assert broken.done.wait(60)
    assert isinstance(broken.row.failed, MemoryError)
    gate.fail.clear()
    good = Asked(text.encode(["a"])[0], 4)
    decoder.submit([good.row])
    assert good.answer()
    assert decoder.healthy(60)


def test_a_decoder_that_stands_still_with_work_to_do_is_not_healthy(decoder: Decoder, gate: Gate, text: Text) -> None:
    assert decoder.healthy(0)
    gate.open.clear()
    stuck = Asked(text.encode(["a"])[0], 4)
    decoder.submit([stuck.row])
    pause = threading.Event()
    _until(lambda: not decoder.healthy(0.05), pause)
    gate.open.set()
    stuck.answer()
    _until(lambda: decoder.healthy(0), pause)


def _until(condition: Callable[[], bool], pause: threading.Event) -> None:
    for _ in range(600):
        if condition():
            return
        pause.wait(0.05)
    pytest.fail("not within 30 s")


def test_prompts_of_similar_length_are_read_together_and_a_long_one_by_itself(decoder: Decoder, gate: Gate) -> None:
    short = [[5] * size for size in (7, 9, 11)]
    asked = [Asked(prompt, 1) for prompt in (short[0], [5] * 80, short[1], short[2])]
    decoder.submit([one.row for one in asked])
    for one in asked:
        assert one.done.wait(60)
    assert sorted(gate.shapes) == [(1, 80), (3, 11)]


@pytest.mark.parametrize(("length", "bucket"), [(1, 64), (64, 64), (65, 256), (256, 256), (257, 1024)])
def test_buckets_grow_by_their_factor(length: int, bucket: int) -> None:
    assert _bucket(length, 4) == bucket
