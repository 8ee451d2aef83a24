"""Two jobs that want the same signals at the same time buy them once."""

import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from distill.buying import obtain
from distill.errors import Failure
from distill.signals import SignalStore
from distill.store.claims import LEASE, claimed
from distill.store.places import Place, place_of
from distill.store.remote_place import RemotePlace
from distill.teachers.protocol import Signal

KEYS = np.random.default_rng(0).integers(0, 256, (6, 32), dtype=np.uint8)


@pytest.fixture(params=["folder", "URL"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return place_of(tmp_path / "signals" if request.param == "folder" else f"file://{tmp_path}/signals")


def test_what_one_claims_another_leaves_alone_until_it_ends(place: Place) -> None:
    with claimed(place, KEYS[:4]) as first:
        assert first.all()
        with claimed(place, KEYS[2:]) as second:
            assert second.tolist() == [False, False, True, True]
    with claimed(place, KEYS) as after:
        assert after.all()
    assert not place.claims()


def test_of_two_that_write_at_the_same_time_the_one_that_sees_the_other_lets_go(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with claimed(place, KEYS[:4]):
        seen = iter([{}, place.claims()])  # as if the other had written after the first look
        monkeypatch.setattr(place, "claims", lambda: next(seen))
        with claimed(place, KEYS) as own:
            assert own.tolist() == [False] * 4 + [True] * 2


def test_a_claim_is_renewed_while_its_job_lives_and_void_when_it_is_not(place: Place) -> None:
    lease = 0.4
    with claimed(place, KEYS, lease):
        (before,) = place.claims().values()
        ends = time.monotonic() + 20
        while next(iter(place.claims().values())) == before:
            assert time.monotonic() < ends, "not renewed in 20 s"
        with claimed(place, KEYS, lease) as second:
            assert not second.any()
    place.write_claim("claim-elsewhere-1-dead", b"\0" * 8 + KEYS.tobytes())  # of 1970
    with claimed(place, KEYS) as own:
        assert own.all()
    assert not place.claims()


def test_a_store_that_cannot_be_written_is_told_with_what_to_do(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(name: str, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(place, "write_claim", full)
    with pytest.raises(Failure, match=r"No space left on device.*make room"), claimed(place, KEYS):
        pass


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), RuntimeError("the endpoint is away")])
def test_a_claim_that_could_not_be_renewed_once_is_renewed_the_next_time(
    error: Exception, place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lease, write, failed = 2.0, place.write_claim, threading.Event()

    def away_once(name: str, content: bytes) -> None:
        if not failed.is_set():
            failed.set()
            raise error
        write(name, content)

    with claimed(place, KEYS, lease):
        (before,) = place.claims().values()
        monkeypatch.setattr(place, "write_claim", away_once)
        ends = time.monotonic() + 20
        while next(iter(place.claims().values())) == before:
            assert time.monotonic() < ends, "not renewed in 20 s"
        with claimed(place, KEYS, lease) as second:
            assert not second.any()
    assert str(error) in caplog.text or repr(error) in caplog.text


@pytest.mark.parametrize("asked", ["glob", "pipe_file"])
def test_an_error_of_a_file_systems_own_kind_is_told_as_any_other(
    asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = RemotePlace(f"file://{tmp_path}/signals")

    def away(*given: Any, **named: Any) -> None:
        raise RuntimeError("the endpoint is away")

    monkeypatch.setattr(place.fs, asked, away)
    with (
        pytest.raises(Failure, match=r"cannot be written \(RuntimeError: the endpoint is away\)"),
        claimed(place, KEYS),
    ):
        pass


def test_a_claim_that_cannot_be_removed_is_told_of_and_what_was_bought_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store, asked = SignalStore(f"file://{tmp_path}/signals"), tmp_path / "asked"

    def away(*given: Any, **named: Any) -> None:
        raise RuntimeError("the endpoint is away")

    with monkeypatch.context() as patched:
        patched.setattr(store.place.fs, "rm", away)  # type: ignore[attr-defined]
        assert obtain(store, Slow(asked), prompts(0, 3)).bought_rows == 3  # type: ignore[arg-type]
    assert "could not be removed (RuntimeError: the endpoint is away)" in caplog.text


class Slow:
    """A teacher that takes a moment for every prompt, and writes down whom it was asked about."""

    digest, format, sampling = "slow", "topk:2", "greedy"

    def __init__(self, asked: Path) -> None:
        self.asked = asked

    def ask(self, prompts: Sequence[NDArray[np.int32]], progress: Any = None) -> Iterator[tuple[int, Signal]]:
        for row, prompt in enumerate(prompts):
            with self.asked.open("a") as file:
                file.write(f"{prompt[0]}\n")
            time.sleep(0.02)
            ids, logprobs = np.array([[1, 2]], np.int32), np.log(np.array([[0.5, 0.5]])).astype(np.float16)
            yield row, Signal(ids[:, 0], ids, logprobs, np.zeros(1, np.float32))


def prompts(first: int, last: int) -> list[NDArray[np.int32]]:
    return [np.array([number], np.int32) for number in range(first, last)]


SCRIPT = "import sys; sys.path.insert(0, {folder!r}); import test_claims as t; print(t.bought(*sys.argv[1:]))"


def bought(root: str, asked: str, first: str, last: str) -> int:
    return obtain(SignalStore(root), Slow(Path(asked)), prompts(int(first), int(last)), flush_rows=10).bought_rows  # type: ignore[arg-type]


def test_three_processes_with_overlapping_rows_buy_each_once_and_all_have_all(tmp_path: Path) -> None:
    root, asked, spans = str(tmp_path / "signals"), str(tmp_path / "asked"), [(0, 60), (20, 80), (40, 100)]
    code = SCRIPT.format(folder=str(Path(__file__).parent))
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, root, asked, str(first), str(last)], stdout=subprocess.PIPE, text=True
        )
        for first, last in spans
    ]
    counts = [int(process.communicate(timeout=120)[0]) for process in started]
    lines = (tmp_path / "asked").read_text().splitlines()
    assert sorted(map(int, lines)) == list(range(100))
    assert sum(counts) == 100
    assert len(SignalStore(root)) == 100


def test_what_a_job_claimed_that_was_killed_on_this_machine_is_bought_by_the_next_at_once(tmp_path: Path) -> None:
    root, asked = tmp_path / "signals", tmp_path / "asked"
    code = SCRIPT.format(folder=str(Path(__file__).parent))
    command = [sys.executable, "-c", code, str(root), str(asked), "0", "500"]
    with subprocess.Popen(command) as process:
        ends = time.monotonic() + 60
        while not asked.exists() or len(asked.read_text().splitlines()) < 25:
            assert time.monotonic() < ends
        process.kill()
    assert place_of(root).claims()
    before = len(SignalStore(root))
    assert before >= 10
    found = obtain(SignalStore(root), Slow(tmp_path / "again"), prompts(0, 60))  # type: ignore[arg-type]
    assert (found.reused_rows, found.bought_rows) == (before, 60 - before)


def test_what_a_job_claimed_that_died_elsewhere_is_waited_for_until_the_lease_is_over(place: Place) -> None:
    place.write_claim("claim-elsewhere-1-dead", struct.pack("<d", time.time() - 0.9 * LEASE) + KEYS.tobytes())
    with claimed(place, KEYS) as own:
        assert not own.any()
    place.write_claim("claim-elsewhere-1-dead", struct.pack("<d", time.time() - 1.1 * LEASE) + KEYS.tobytes())
    with claimed(place, KEYS) as own:
        assert own.all()
