"""The signal store: what was bought stays bought, whatever dies, and is bought once."""

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from distill import signals
from distill.buying import obtain
from distill.errors import Failure, InputError
from distill.signals import SignalStore, key
from distill.store import shards, upkeep
from distill.store.places import place_of
from distill.store.records import Bases, pack
from distill.store.soundness import Record
from distill.teachers.protocol import Signal

Prompt = NDArray[np.int32]


def make_signal(number: int, k: int = 4) -> Signal:
    """A signal that is a function of its number, of 1 to 4 tokens."""
    rng = np.random.default_rng(number)
    rows = 1 + number % 4
    probabilities = -np.sort(-rng.dirichlet(np.ones(k + 3), rows), axis=1)
    logprobs = np.log(probabilities[:, :k]).astype(np.float16)
    tail = probabilities[:, k:].sum(1).astype(np.float32)
    ids = rng.integers(0, 320, (rows, k), dtype=np.int32)
    return Signal(rng.integers(0, 320, rows, dtype=np.int32), ids, logprobs, tail)


def prompt_of(number: int) -> Prompt:
    return np.array([number, 7, number + 1], np.int32)


def key_of(number: int) -> bytes:
    return key("teacher", "topk:4", "greedy", prompt_of(number))


def records(numbers: Sequence[int]) -> list[Record]:
    return [(key_of(number), 3, make_signal(number)) for number in numbers]


def keys(numbers: Sequence[int]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(key_of(number) for number in numbers), np.uint8).reshape(-1, 32)


def assert_holds(store: SignalStore, numbers: Sequence[int]) -> None:
    assert store.contains(keys(numbers)).all()
    for number in numbers:
        assert_same(store.get(key_of(number)), make_signal(number))


def assert_same(found: Any, expected: Signal) -> None:
    """All is kept exactly, but for the tail: its logarithm is rounded to float16, as the log-probabilities are."""
    for name in ("answer", "ids", "logprobs", "tail"):
        assert getattr(found, name).dtype == getattr(expected, name).dtype
        if name != "tail":
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    there = expected.tail > 0
    np.testing.assert_array_equal(found.tail > 0, there)
    exact = np.log(expected.tail[there].astype(np.float64))
    assert (np.abs(np.log(found.tail[there]) - exact) <= np.abs(exact) * 2**-11 + 1e-6).all()


def publish(root: Path, batch: list[Record]) -> None:
    """Write a shard without looking what is there, as a writer does that began before another one ended."""
    place = place_of(root)
    table, encoded = pack(batch, Bases(place))
    place.publish(lambda folder: shards.write(folder, table, encoded))


class CountingTeacher:
    """Answers with `make_signal` of a prompt's first token, in reverse order, and counts what it was asked."""

    digest, format, sampling = "teacher", "topk:4", "greedy"

    def __init__(self, fails_after: int | None = None) -> None:
        self.asked: list[int] = []
        self.fails_after = fails_after

    def check(self, tokenizer: Any, top_k: int) -> None:
        """Anything goes."""

    def ask(
        self, prompts: Sequence[Prompt], progress: Callable[[int, int], None] | None = None
    ) -> Iterator[tuple[int, Signal]]:
        for done, row in enumerate(reversed(range(len(prompts))), 1):
            if len(self.asked) == self.fails_after:
                raise ConnectionError("the teacher is gone")
            number = int(prompts[row][0])
            self.asked.append(number)
            yield row, make_signal(number)
            if progress:
                progress(done, len(prompts))


def test_what_was_put_is_read_back_by_another_store(tmp_path: Path) -> None:
    store = SignalStore(tmp_path / "signals")
    assert store.put(records(range(10))) == 10
    assert store.put(records(range(10, 20))) == 10
    for reader in (store, SignalStore(tmp_path / "signals")):
        assert_holds(reader, range(20))
        assert not reader.contains(keys([20, 21])).any()
        assert len(reader) == 20
        np.testing.assert_array_equal(reader.tokens(keys(range(8))), [3 + 1 + n % 4 for n in range(8)])


def test_log_probabilities_are_views_of_the_mapped_file(tmp_path: Path) -> None:
    store = SignalStore(tmp_path)
    store.put(records([3]))
    base: Any = store.get(key_of(3)).logprobs
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        store.get(key_of(3)).logprobs[0, 0] = 1


def test_a_key_depends_on_teacher_format_sampling_and_prompt() -> None:
    parts = ("teacher", "topk:4", "greedy", prompt_of(1))
    changed = [("other", *parts[1:]), ("teacher", "topk:5", *parts[2:]), (*parts[:2], "x", parts[3])]
    changed += [(*parts[:3], prompt_of(2)), ("teacher", "topk:4greedy", "", parts[3])]
    assert len({key(*part) for part in [parts, *changed]}) == 6
    assert key(*parts) == key(*parts[:3], prompt_of(1).astype(np.int64))
    assert len(key(*parts)) == 32


def test_a_record_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    store = SignalStore(tmp_path)
    assert store.put(records([1, 2, 2])) == 2
    assert store.put(records([2, 1])) == 0
    assert store.put([]) == 0
    assert len(list(tmp_path.iterdir())) == 1
    assert store.put(records([2, 3])) == 1
    assert len(store) == 3


def test_two_writers_see_each_other_and_duplicates_are_harmless(tmp_path: Path) -> None:
    one, other = SignalStore(tmp_path), SignalStore(tmp_path)
    one.put(records([1, 2]))
    assert other.put(records([2, 3])) == 1
    publish(tmp_path, records([1, 2, 3]))  # a writer that did not look
    assert_holds(SignalStore(tmp_path), [1, 2, 3])


def test_no_signal_is_a_failure_that_says_what_to_do(tmp_path: Path) -> None:
    for store in (SignalStore(tmp_path / "none"), SignalStore(tmp_path)):
        with pytest.raises(Failure, match="ask the teacher again"):
            store.get(key_of(1))
    store.put(records([1]))
    with pytest.raises(Failure, match=key_of(2).hex()[:12]):
        store.tokens(keys([1, 2]))


GOOD = make_signal(3)
WRONG = {
    "a row is missing": (replace(GOOD, ids=GOOD.ids[1:]), "shapes"),
    "no tokens": (replace(GOOD, answer=GOOD.answer[:0], tail=GOOD.tail[:0]), "T > 0"),
    "another k": (make_signal(3, k=5), r"\(T, 4\)"),
    "not a number": (replace(GOOD, logprobs=np.full_like(GOOD.logprobs, np.nan)), "finite.*got nan"),
    "infinite": (replace(GOOD, logprobs=np.full_like(GOOD.logprobs, -np.inf)), "finite.*got -inf"),
    "tail not a number": (replace(GOOD, tail=np.full_like(GOOD.tail, np.nan)), "tail >= 0, got nan"),
    "tail below 0": (replace(GOOD, tail=-GOOD.tail), "tail >= 0"),
    "above 0": (replace(GOOD, logprobs=np.abs(GOOD.logprobs)), "log-probabilities <= 0"),
    "too much": (replace(GOOD, tail=GOOD.tail + np.float32(0.02)), "add up to 1"),
    "too little": (replace(GOOD, logprobs=(GOOD.logprobs - 1).astype(np.float16)), "add up to 1"),
    "no token id": (replace(GOOD, ids=-1 - GOOD.ids), "token ids >= 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_signal_that_cannot_be_right_is_refused_and_nothing_stored(tmp_path: Path, name: str) -> None:
    signal, expected = WRONG[name]
    store = SignalStore(tmp_path)
    with pytest.raises(Failure, match=expected) as refused:
        store.put([*records([1, 2]), (key_of(3), 3, signal)])
    assert key_of(3).hex()[:12] in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def read_all(root: Path) -> None:
    """Open a store and read every record."""
    store = SignalStore(root)
    store.get_many(keys(range(5)))


@pytest.mark.parametrize("name", ["index", "data"])
@pytest.mark.parametrize("left", [0, 5, 100, -1])
def test_a_truncated_file_is_named_when_it_is_read(tmp_path: Path, name: str, left: int) -> None:
    SignalStore(tmp_path).put(records(range(5)))
    (file,) = tmp_path.glob(f"shard-*/{name}")
    os.truncate(file, left if left >= 0 else file.stat().st_size - 1)
    with pytest.raises(Failure) as refused:
        read_all(tmp_path)
    assert str(file) in str(refused.value)
    assert f"delete the folder {str(file.parent)!r}" in str(refused.value)


@pytest.mark.parametrize("name", ["index", "data"])
def test_a_missing_or_exchanged_file_is_named_when_it_is_read(tmp_path: Path, name: str) -> None:
    SignalStore(tmp_path).put(records(range(5)))
    (file,) = tmp_path.glob(f"shard-*/{name}")
    file.write_bytes(b"something else")
    with pytest.raises(Failure, match=f"shard-.*/{name}"):
        read_all(tmp_path)
    file.unlink()
    with pytest.raises(Failure, match=f"shard-.*/{name}.*missing"):
        read_all(tmp_path)


@pytest.mark.parametrize("name", ["index", "data"])
def test_a_flipped_bit_anywhere_is_found_and_its_file_named(tmp_path: Path, name: str) -> None:
    SignalStore(tmp_path).put(records(range(5)))
    (file,) = tmp_path.glob(f"shard-*/{name}")
    content = file.read_bytes()
    for bit in range(0, 8 * len(content), 9):  # in every byte, and in every place of a byte
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        file.unlink()  # and made anew: a file changed in place within the clock's grain is one that was verified
        file.write_bytes(flipped)
        with pytest.raises(Failure, match=f"shard-.*/{name}"):
            read_all(tmp_path)
    file.unlink()
    file.write_bytes(content)
    read_all(tmp_path)


def test_a_shards_checksum_is_verified_once_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for first in (0, 5):
        SignalStore(tmp_path).put(records(range(first, first + 5)))
    hashed: list[int] = []
    whole = shards._sha256
    monkeypatch.setattr(shards, "_sha256", lambda mapped: hashed.append(len(mapped)) or whole(mapped))
    for _ in range(3):
        SignalStore(tmp_path).get_many(keys(range(10)))
    assert len(hashed) == 2


def test_a_shard_of_another_format_version_is_refused_and_it_is_said_what_to_do(tmp_path: Path) -> None:
    SignalStore(tmp_path).put(records(range(5)))
    (file,) = tmp_path.glob("shard-*/index")
    content = bytearray(file.read_bytes())
    content[8:12] = (shards.VERSION + 1).to_bytes(4, "little")
    file.write_bytes(content)
    with pytest.raises(Failure, match=rf"version is {shards.VERSION + 1}.*reads {shards.VERSION}.*upgrade.*delete"):
        SignalStore(tmp_path)
    file.unlink()
    np.save(file.parent / "index.npy", np.zeros(3))
    with pytest.raises(Failure, match=r"of the first format.*delete the folder"):
        SignalStore(tmp_path)


def test_what_is_called_a_shard_and_is_none_is_named(tmp_path: Path) -> None:
    SignalStore(tmp_path).put(records(range(3)))
    store = SignalStore(tmp_path)
    (tmp_path / "shard-x").symlink_to(tmp_path / "nowhere")
    for read in (store.refresh, lambda: SignalStore(tmp_path), lambda: upkeep.stats(store.place)):
        with pytest.raises(Failure, match=r"shard-x' .* not whole .a link to nothing.: mend or delete the link"):
            read()
    assert [damage.path for damage in upkeep.verify(store.place, lambda *_: None)[1]] == [str(tmp_path / "shard-x")]
    (tmp_path / "shard-x").unlink()
    (tmp_path / "shard-x.tar").write_bytes(b"a backup")
    for read in (store.refresh, lambda: SignalStore(tmp_path)):
        with pytest.raises(Failure, match=r"shard-x.tar' .* not whole .it is no folder.: .* move it elsewhere"):
            read()
    assert [damage.path for damage in upkeep.verify(store.place, lambda *_: None)[1]] == [str(tmp_path / "shard-x.tar")]
    (tmp_path / "shard-x.tar").unlink()
    store.refresh()
    assert_holds(store, range(3))


def test_a_store_whose_root_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "signals").write_bytes(b"")
    with pytest.raises(InputError, match="signals' is a file: name a folder"):
        SignalStore(tmp_path / "signals")


def test_a_full_disk_leaves_what_was_stored_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SignalStore(tmp_path)
    store.put(records([1]))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Failure, match=r"No space left on device.*make room"):
        store.put(records([2, 3]))
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == 1
    assert store.put(records([1, 2, 3])) == 2


def test_abandoned_partial_shards_are_swept_after_a_day(tmp_path: Path) -> None:
    old, young = tmp_path / ".partial-old", tmp_path / ".partial-young"
    old.mkdir()
    young.mkdir()
    os.utime(old, (0, time.time() - 25 * 3600))
    SignalStore(tmp_path).put(records([1]))
    assert not old.exists()
    assert young.exists()


KILLED_AT_EACH_STEP = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from dying import die_before_call
from test_signals import records
from distill.store import shards, upkeep
from distill.signals import SignalStore

root, step = Path(sys.argv[1]), 0
while True:
    child = os.fork()
    if child == 0:
        die_before_call(step, (shards, "write"), (os, "fsync"), (os, "rename"))
        SignalStore(root / str(step)).put(records(range(50)))
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
    step += 1
print(step)
"""


def run(script: str, *arguments: object) -> str:
    here = Path(__file__).parent
    command = [sys.executable, "-c", script, *map(str, arguments), str(here)]
    return subprocess.run(command, cwd=here.parents[1], check=True, capture_output=True, text=True, timeout=600).stdout


def test_a_writer_killed_before_any_step_leaves_all_of_a_shard_or_nothing(tmp_path: Path) -> None:
    steps = int(run(KILLED_AT_EACH_STEP, tmp_path))
    assert steps == 6  # begun, two files written and synced, the folder synced, renamed, the root synced
    found = []
    for step in range(steps):
        store = SignalStore(tmp_path / str(step))
        found.append(len(store))
        store.put(records(range(50)))
        assert_holds(SignalStore(tmp_path / str(step)), range(50))
    assert found == [0] * 5 + [50]


KILLED_AT_EACH_BYTE = """
import os, resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_signals import records
from distill.signals import SignalStore

root, size = Path(sys.argv[1]), 0
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
while True:
    child = os.fork()
    if child == 0:
        store = SignalStore(root)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))  # one byte more, and the kernel kills the process
        store.put(records(range(50, 60)))
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
    assert len(SignalStore(root)) == 50
    size += 61
print(size)
"""


def test_a_writer_killed_at_any_byte_leaves_what_was_there(tmp_path: Path) -> None:
    SignalStore(tmp_path).put(records(range(50)))
    largest = int(run(KILLED_AT_EACH_BYTE, tmp_path))
    _, new = sorted(tmp_path.glob("shard-*"))
    assert largest - 61 < max(file.stat().st_size for file in new.iterdir()) <= largest
    assert_holds(SignalStore(tmp_path), range(60))


KILLED_AT_RANDOM = """
import os, random, select, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_signals import records
from distill.signals import SignalStore

root, chance, acknowledged = Path(sys.argv[1]), random.Random(0), 0
for _ in range(12):
    inlet, outlet = os.pipe()
    children = []
    for writer in (0, 1):  # two at once
        child = os.fork()
        if child == 0:
            store = SignalStore(root)
            for first in range(acknowledged, 10**6, 20):
                store.put(records(range(first, first + 20)))
                os.write(outlet, f"{first + 20:8d}".encode())
        children.append(child)
    last = os.read(inlet, 8)
    select.select([], [], [], chance.random() * 0.02)
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    os.close(outlet)
    while more := os.read(inlet, 8):
        last = max(last, more)
    os.close(inlet)
    acknowledged = int(last)
print(acknowledged)
"""


def test_what_was_stored_survives_two_writers_killed_again_and_again(tmp_path: Path) -> None:
    acknowledged = int(run(KILLED_AT_RANDOM, tmp_path))
    assert acknowledged >= 12 * 20
    assert_holds(SignalStore(tmp_path), range(acknowledged))


def test_only_what_is_missing_is_bought_and_tokens_are_counted(tmp_path: Path) -> None:
    teacher, store = CountingTeacher(), SignalStore(tmp_path)
    seen: list[tuple[int, int]] = []
    first = obtain(store, teacher, [prompt_of(n) for n in range(10)])
    assert (first.bought_rows, first.reused_rows, first.reused_tokens) == (10, 0, 0)
    assert first.bought_tokens == sum(3 + 1 + n % 4 for n in range(10))
    teacher.asked.clear()
    second = obtain(
        SignalStore(tmp_path),
        teacher,
        [prompt_of(n) for n in range(5, 15)],
        progress=lambda *done: seen.append(done),
    )
    assert sorted(teacher.asked) == list(range(10, 15))
    assert (second.bought_rows, second.reused_rows) == (5, 5)
    assert second.bought_tokens == sum(3 + 1 + n % 4 for n in range(10, 15))
    assert second.reused_tokens == sum(3 + 1 + n % 4 for n in range(5, 10))
    assert seen[-1] == (5, 5)
    np.testing.assert_array_equal(second.keys, keys(range(5, 15)))
    assert_holds(SignalStore(tmp_path), range(15))


def test_a_repeated_prompt_is_bought_once(tmp_path: Path) -> None:
    teacher = CountingTeacher()
    found = obtain(SignalStore(tmp_path), teacher, [prompt_of(n) for n in (3, 1, 3, 3, 1)])
    assert sorted(teacher.asked) == [1, 3]
    assert (found.bought_rows, found.reused_rows) == (2, 3)
    assert (found.bought_tokens, found.reused_tokens) == (5 + 7, 7 + 7 + 5)
    np.testing.assert_array_equal(found.keys, keys([3, 1, 3, 3, 1]))


def test_a_teacher_whose_signals_are_all_there_is_not_asked(tmp_path: Path) -> None:
    store = SignalStore(tmp_path)
    store.put(records(range(4)))
    teacher = CountingTeacher(fails_after=0)
    assert obtain(store, teacher, [prompt_of(n) for n in range(4)]).bought_rows == 0
    empty = obtain(store, teacher, [])
    assert (empty.keys.shape, empty.bought_tokens, empty.reused_tokens) == ((0, 32), 0, 0)


def test_a_job_that_broke_off_buys_only_the_rest(tmp_path: Path) -> None:
    prompts = [prompt_of(n) for n in range(20)]
    with pytest.raises(ConnectionError):
        obtain(SignalStore(tmp_path), CountingTeacher(fails_after=13), prompts, flush_rows=5)
    assert len(SignalStore(tmp_path)) == 13  # the unfinished lot too
    teacher = CountingTeacher()
    assert obtain(SignalStore(tmp_path), teacher, prompts).bought_rows == len(teacher.asked) == 7


def test_rows_are_in_the_store_while_the_teacher_still_answers(tmp_path: Path) -> None:
    stored: list[int] = []
    for options in ({"flush_rows": 5}, {"flush_seconds": 0.0}):
        root = tmp_path / json.dumps(options)
        obtain(
            SignalStore(root),
            CountingTeacher(),
            [prompt_of(n) for n in range(12)],
            progress=lambda *_, root=root: stored.append(len(SignalStore(root))),
            **options,
        )
    assert stored == [0] * 4 + [5] * 5 + [10] * 3 + list(range(1, 13))


def test_a_teacher_that_leaves_prompts_out_is_a_failure_and_its_answers_are_kept(tmp_path: Path) -> None:
    class Lazy(CountingTeacher):
        def ask(self, prompts: Sequence[Prompt], progress: Any = None) -> Iterator[tuple[int, Signal]]:
            yield from super().ask(prompts[:3], progress)

    with pytest.raises(Failure, match="answered 3 of 8"):
        obtain(SignalStore(tmp_path), Lazy(), [prompt_of(n) for n in range(8)])
    assert len(SignalStore(tmp_path)) == 3


def test_a_wrong_signal_stops_the_job(tmp_path: Path) -> None:
    class Broken(CountingTeacher):
        def ask(self, prompts: Sequence[Prompt], progress: Any = None) -> Iterator[tuple[int, Signal]]:
            for row, signal in super().ask(prompts, progress):
                yield row, replace(signal, tail=signal.tail + np.float32(1)) if row == 2 else signal

    with pytest.raises(Failure, match="add up to 1"):
        obtain(SignalStore(tmp_path), Broken(), [prompt_of(n) for n in range(8)], flush_rows=2)
    assert len(SignalStore(tmp_path)) == 4  # the lots before; none of the lot of the wrong one


def test_a_store_of_100_000_rows_opens_and_finds_within_two_cpu_seconds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    raw = rng.bytes(32 * 100_000)
    signal = make_signal(1)
    store = SignalStore(tmp_path)
    for first in range(0, 100_000, 500):
        lot = range(first, first + 500)
        publish(tmp_path, [(raw[32 * n : 32 * n + 32], 20, signal) for n in lot])
    began = time.process_time()  # [CPU seconds], which other work on the machine does not stretch
    store = SignalStore(tmp_path)
    assert store.contains(np.frombuffer(raw, np.uint8).reshape(-1, 32)).all()
    assert time.process_time() - began < 2
    assert len(store) == 100_000


def test_a_retrain_whose_rows_overlap_by_nine_tenths_buys_at_most_a_tenth_of_the_tokens(tmp_path: Path) -> None:
    obtain(SignalStore(tmp_path), CountingTeacher(), [prompt_of(n) for n in range(400)])
    found = obtain(SignalStore(tmp_path), CountingTeacher(), [prompt_of(n) for n in range(40, 440)])
    assert found.bought_rows == 40
    assert found.bought_tokens <= 0.1 * (found.bought_tokens + found.reused_tokens)


def test_threads_that_read_one_store_do_not_disturb_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_OPEN_SHARDS", 2)  # shards are opened and closed all the time
    writer = SignalStore(tmp_path)
    for number in range(12):
        writer.put(records([number]))
    keys = np.frombuffer(b"".join(key for key, _, _ in records(range(12))), np.uint8).reshape(-1, 32)
    store, usual = SignalStore(tmp_path), sys.getswitchinterval()

    def read(number: int) -> None:
        for _ in range(60):
            lengths, whole = store.get_many(keys[number::3])
            assert len(whole.answer) == lengths.sum()

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(3) as threads:
            list(threads.map(read, range(3)))
    finally:
        sys.setswitchinterval(usual)
