"""What the store keeps of a signal, in how many bytes, and what is lost."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from distill.errors import Failure, InputError
from distill.signals import SignalStore, key
from distill.store import basis, bits, encodings
from distill.store.soundness import Record
from distill.teachers.protocol import AnySignal, HiddenSignal, Signal


def topk(tokens: int, k: int, vocabulary: int, seed: int = 0) -> Signal:
    """What a model says that is sure of some tokens and unsure of others; a tenth of the answers are outside the k."""
    rng = np.random.default_rng(seed)
    logits = np.sort(rng.normal(0, rng.uniform(1, 8, (tokens, 1)), (tokens, 4 * k)))[:, ::-1].astype(np.float64)
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    ids = np.argsort(rng.random((tokens, vocabulary)) if vocabulary < 1000 else rng.random((tokens, 4 * k)))[:, :k]
    ids = (ids + (vocabulary - ids.max() - 1)).astype(np.int32)
    answer = np.where(rng.random(tokens) < 0.9, ids[np.arange(tokens), rng.integers(0, k, tokens)], 0)
    logprobs = np.log(probabilities[:, :k]).clip(-65504, 0).astype(np.float16)
    return Signal(answer.astype(np.int32), ids, logprobs, probabilities[:, k:].sum(1).astype(np.float32))


def states(tokens: int, width: int, rank: int, noise: float = 0.02, seed: int = 0, world: int = 0) -> HiddenSignal:
    """States of a few strong directions, those of `world`, and noise."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(1000 + world).normal(size=(rank, width))
    found = rng.normal(size=(tokens, rank)) @ directions + noise * np.sqrt(rank) * rng.normal(size=(tokens, width))
    return HiddenSignal(
        rng.integers(0, 320, tokens, dtype=np.int32),
        found.astype(np.float32),
        -rng.uniform(0, 3, tokens).astype(np.float16),
    )


def rows_of(signal: AnySignal, lengths: list[int], name: str = "") -> list[Record]:
    """The tokens as records of these lengths."""
    starts = np.cumsum([0, *lengths])
    return [
        (
            key("teacher", name, "greedy", np.array([at], np.int32)),
            3,
            encodings.picked(signal, np.arange(starts[at], starts[at + 1])),
        )
        for at in range(len(lengths))
    ]


def keys_of(records: list[Record]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(record[0] for record in records), np.uint8).reshape(-1, 32)


@pytest.mark.parametrize("k", [1, 3, 8, 9, 64])
@pytest.mark.parametrize("width", [1, 2, 5, 8, 17, 18, 25, 26, 31])
def test_ids_come_back_from_any_number_of_bits(k: int, width: int) -> None:
    ids = np.random.default_rng(width).integers(0, 2**width, (7, k)).astype(np.int32)
    ids[0], ids[6] = 0, 2**width - 1
    packed = bits.pack(ids, width)
    assert packed.shape == (7, -(-k * width // 8))
    np.testing.assert_array_equal(bits.unpack(packed, k, width), ids)


def test_top_64_of_an_18_bit_vocabulary_takes_at_most_276_bytes_a_token(tmp_path: Path) -> None:
    signal = topk(6400, 64, 2**18)
    inside = replace(signal, answer=signal.ids[:, 0])
    store = SignalStore(tmp_path)
    store.put(rows_of(inside, [64] * 100))
    (data,) = tmp_path.glob("shard-*/data")
    assert data.stat().st_size / 6400 <= 276


@pytest.mark.parametrize(("k", "vocabulary"), [(1, 2), (4, 320), (64, 2**18), (300, 2**17 + 1)])
def test_top_k_keeps_all_exactly_but_the_tail_which_it_keeps_as_exactly_as_a_log_probability(
    k: int, vocabulary: int
) -> None:
    signal = topk(200, k, vocabulary) if 4 * k < vocabulary else topk(200, k, 4 * k + 1)
    back = encodings.decode(encodings.encode(signal), slice(None))
    assert isinstance(back, Signal)
    np.testing.assert_array_equal(back.answer, signal.answer)
    np.testing.assert_array_equal(back.ids, signal.ids)
    np.testing.assert_array_equal(back.logprobs, signal.logprobs)
    there = signal.tail > 0
    exact = np.log(signal.tail[there].astype(np.float64))
    assert (np.abs(np.log(back.tail[there].astype(np.float64)) - exact) <= np.abs(exact) * 2**-11 + 1e-6).all()
    assert np.abs(back.tail.astype(np.float64) - signal.tail).max() <= 2**-11 / np.e + 1e-6


def test_a_tail_of_nothing_and_one_of_almost_nothing_stay_what_they_are() -> None:
    signal = topk(4, 2, 320)
    tails = np.array([0, 1e-30, 1e-44, 1], np.float32)
    back = encodings.decode(encodings.encode(replace(signal, tail=tails)), slice(None))
    assert isinstance(back, Signal)
    assert back.tail[0] == 0
    assert (back.tail[1:] > 0).all()
    np.testing.assert_allclose(back.tail, tails, rtol=0.05)
    assert back.tail[3] == 1


def test_a_batch_is_read_in_the_order_that_was_asked_for_whatever_shards_it_lies_in(tmp_path: Path) -> None:
    signal, rng = topk(300, 5, 320), np.random.default_rng(1)
    records = rows_of(signal, [1, 2, 3, 4] * 30)
    store = SignalStore(tmp_path)
    for first in range(0, 120, 25):
        store.put(records[first : first + 25])
    for chosen in (rng.permutation(120), rng.integers(0, 120, 40), np.array([7])):
        wanted = [records[at] for at in chosen]
        lengths, found = store.get_many(keys_of(wanted))
        assert lengths.tolist() == [len(record[2].answer) for record in wanted]
        assert isinstance(found, Signal)
        for name in ("answer", "ids", "logprobs"):
            expected = np.concatenate([getattr(record[2], name) for record in wanted])
            np.testing.assert_array_equal(getattr(found, name), expected)
        one = [store.get(record[0]) for record in wanted]
        np.testing.assert_array_equal(found.tail, np.concatenate([each.tail for each in one]))


def test_formats_are_not_mixed_in_one_batch(tmp_path: Path) -> None:
    store = SignalStore(tmp_path)
    four, five = rows_of(topk(3, 4, 320), [3], "four"), rows_of(topk(3, 5, 320), [3], "five")
    hidden = rows_of(states(3, 16, 4), [3], "hidden")
    for other, expected in ((five, r"\(T, 4\)"), (hidden, "format topk, as the batch's first, got hidden:bf16")):
        with pytest.raises(Failure, match=expected):
            store.put([*four, *other])
    for batch in (four, five, hidden):
        store.put(batch)
    with pytest.raises(Failure, match=r"2 formats \['topk:4', 'topk:5'\]"):
        store.get_many(keys_of([*four, *five]))


@pytest.mark.parametrize(
    ("name", "size", "error"), [("hidden:bf16", 2 * 256 + 6, 2**-8), ("hidden:int8", 256 + 10, 0.02)]
)
def test_states_come_back_within_the_stated_error(tmp_path: Path, name: str, size: int, error: float) -> None:
    signal = replace(states(400, 256, 16), format=name)
    signal.states[7] = 0
    records = rows_of(signal, [100] * 4)
    store = SignalStore(tmp_path)
    store.put(records)
    lengths, found = store.get_many(keys_of(records))
    assert isinstance(found, HiddenSignal)
    assert (found.format, found.states.dtype, lengths.tolist()) == (name, np.float32, [100] * 4)
    np.testing.assert_array_equal(found.answer, signal.answer)
    missed = np.linalg.norm(found.states - signal.states) / np.linalg.norm(signal.states)
    assert 0 < missed < error
    assert (found.states[7] == 0).all()
    (data,) = tmp_path.glob("shard-*/data")
    assert data.stat().st_size <= 400 * size + 128
    stated = store._index["error"]
    assert abs(np.sqrt((stated**2).mean()) - missed) < 0.05 * missed


def test_bfloat16_is_rounded_to_nearest_as_torch_does_it() -> None:
    import torch

    values = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32) * 10.0 ** np.arange(-20, 20, 5)
    values = values.astype(np.float32)
    given = HiddenSignal(np.zeros(50, np.int32), values, np.zeros(50, np.float16))
    back = encodings.decode(encodings.encode(given), slice(None))
    assert isinstance(back, HiddenSignal)
    np.testing.assert_array_equal(back.states, torch.from_numpy(values).bfloat16().float().numpy())


def test_leading_directions_are_found_once_and_their_error_is_stated(tmp_path: Path) -> None:
    store = SignalStore(tmp_path)
    for seed in range(3):
        signal = replace(states(200, 64, 8, seed=seed), format="hidden:svd8")
        records = rows_of(signal, [50] * 4, f"svd{seed}")
        assert store.put(records) == 4
        found = store.get_many(keys_of(records))[1]
        assert isinstance(found, HiddenSignal)
        missed = np.linalg.norm(found.states - signal.states) / np.linalg.norm(signal.states)
        best = np.linalg.svd(signal.states.astype(np.float64), compute_uv=False)
        bound = np.sqrt((best[8:] ** 2).sum() / (best**2).sum())
        assert bound * 0.999 <= missed <= 1.2 * bound
        stated = store._index["error"][store._find(keys_of(records))[0]]
        assert abs(np.sqrt((stated**2).mean()) - missed) < 0.05 * missed
    assert len(list(tmp_path.glob("basis-8x64-*"))) == 1
    assert sum(data.stat().st_size for data in tmp_path.glob("shard-*/data")) <= 600 * (2 * 8 + 10) + 3 * 192


def test_states_that_the_known_directions_miss_get_directions_of_their_own(tmp_path: Path) -> None:
    store = SignalStore(tmp_path)
    for world in (0, 1, 0):
        signal = replace(states(200, 64, 8, seed=len(store), world=world), format="hidden:svd8")
        store.put(rows_of(signal, [50] * 4, str(len(store))))
    assert len(list(tmp_path.glob("basis-8x64-*"))) == 2
    assert store._index["error"].max() < 0.03


def test_too_few_tokens_to_find_directions_from_are_kept_as_bfloat16(tmp_path: Path) -> None:
    store = SignalStore(tmp_path)
    few = replace(states(20, 64, 8), format="hidden:svd8")
    records = rows_of(few, [10, 10])
    store.put(records)
    assert not list(tmp_path.glob("basis-*"))
    found = store.get_many(keys_of(records))[1]
    assert isinstance(found, HiddenSignal)
    assert found.format == "hidden:svd8"
    np.testing.assert_allclose(found.states, few.states, rtol=2**-8)


def test_as_many_directions_as_the_width_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"hidden:svd64.*width 64: use fewer"):
        SignalStore(tmp_path).put(rows_of(replace(states(400, 64, 8), format="hidden:svd64"), [400]))
    assert not list(tmp_path.iterdir())


def test_a_flipped_bit_in_a_basis_is_found_and_its_file_named(tmp_path: Path) -> None:
    records = rows_of(replace(states(64, 32, 4), format="hidden:svd4"), [32, 32])
    SignalStore(tmp_path).put(records)
    (file,) = tmp_path.glob("basis-*")
    content = file.read_bytes()
    for bit in range(0, 8 * len(content), 31):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        with pytest.raises(Failure, match=file.name):
            SignalStore(tmp_path).get_many(keys_of(records))
    file.unlink()
    with pytest.raises(Failure, match=file.name):
        SignalStore(tmp_path).get_many(keys_of(records))


GOOD = states(3, 16, 4)
WRONG = {
    "a row is missing": (replace(GOOD, states=GOOD.states[1:]), r"states \(T, 16\)"),
    "no tokens": (replace(GOOD, states=GOOD.states[:0], answer=GOOD.answer[:0]), "T > 0"),
    "another width": (states(3, 15, 4), r"states \(T, 16\)"),
    "not a number": (replace(GOOD, states=np.full_like(GOOD.states, np.nan)), "finite states.*got nan"),
    "infinite": (replace(GOOD, states=np.full_like(GOOD.states, -np.inf)), "finite states.*got inf"),
    "no token": (replace(GOOD, answer=-1 - GOOD.answer), "answer tokens >= 0"),
    "another format": (replace(GOOD, format="hidden:int8"), "format hidden:bf16.*got hidden:int8"),
}


@pytest.mark.parametrize("name", WRONG)
def test_states_that_cannot_be_right_are_refused_and_nothing_stored(tmp_path: Path, name: str) -> None:
    signal, expected = WRONG[name]
    wrong = (key("teacher", "x", "greedy", np.array([9], np.int32)), 3, signal)
    with pytest.raises(Failure, match=expected):
        SignalStore(tmp_path).put([*rows_of(states(6, 16, 4), [2, 4]), wrong])
    assert list(tmp_path.iterdir()) == []


def test_directions_are_those_of_a_singular_value_decomposition() -> None:
    for tokens in (40, 300):  # fewer tokens than the width, and more
        signal = states(tokens, 64, 10, noise=0.1)
        found = basis.find(signal.states, 10)
        assert found is not None
        _, _, right = np.linalg.svd(signal.states.astype(np.float64), full_matrices=False)
        overlap = np.linalg.svd(found[0].directions @ right[:10].T, compute_uv=False)
        np.testing.assert_allclose(overlap, 1, atol=1e-5)
        np.testing.assert_allclose(found[0].directions @ found[0].directions.T, np.eye(10), atol=1e-5)


@pytest.mark.parametrize("text", ["", "topk", "topk:0", "topk:x", "hidden", "hidden:fp16", "hidden:svd", "hidden:svd0"])
def test_an_unknown_format_is_refused_and_the_known_ones_named(text: str) -> None:
    with pytest.raises(InputError, match=r"use topk:K, hidden:bf16, hidden:int8 or hidden:svdR"):
        encodings.parse(text)


@pytest.mark.parametrize("k", [65_536, 10**30])
def test_more_kept_tokens_than_have_a_rank_are_refused(k: int) -> None:
    with pytest.raises(InputError, match=rf"'topk:{k}': at most 65,535 tokens are kept; hidden:bf16 keeps all"):
        encodings.parse(f"topk:{k}")


def test_the_last_of_as_many_kept_tokens_as_can_be_is_found_again_and_one_more_is_refused(tmp_path: Path) -> None:
    def whole(k: int) -> Signal:
        ids = np.arange(k, dtype=np.int32)[None].repeat(3, 0)
        logprobs = np.full(ids.shape, -np.log(k), np.float16)
        return Signal(np.array([k - 1, k, 0], np.int32), ids, logprobs, np.zeros(3, np.float32))

    back = encodings.decode(encodings.encode(whole(65_535)), slice(None))
    assert back.answer.tolist() == [65_534, 65_535, 0]
    with pytest.raises(InputError, match="'topk:65536': at most 65,535"):
        encodings.encode(whole(65_536))


def test_formats_are_read_as_kind_and_number() -> None:
    found = [encodings.parse(text) for text in ("topk:64", "hidden:bf16", "hidden:int8", "hidden:svd128")]
    assert found == [("topk", 64), ("bf16", 0), ("int8", 0), ("svd", 128)]


def test_reading_costs_at_most_a_twentieth_of_a_training_step(tmp_path: Path) -> None:
    from benchmarks.signals import measure

    step = 760  # tokens a CPU second: student 32M, cached top-64, vocabulary 32k (benchmarks.distill measures it)
    found = measure("topk:64", 2, tmp_path)
    assert found.payload <= 276
    assert found.first >= 20 * step
