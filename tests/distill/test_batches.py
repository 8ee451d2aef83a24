"""What a mixture and a batch hold."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

from distill.batches import Batches, collate
from distill.batching.attention import layout_of
from distill.batching.packing import Layout
from distill.errors import Failure, InputError
from distill.loss.objective import Objective
from distill.mixture import Mixture, draw, load, replay_count, save
from distill.settings import TrainingSettings
from distill.signals import SignalStore, key
from distill.teachers.protocol import Signal


def signal(answer: list[int], k: int = 2) -> Signal:
    ids = np.stack([np.array(answer), np.array(answer) + 1], 1).astype(np.int32)[:, :k]
    logprobs = np.log(np.full(ids.shape, 0.4)).astype(np.float16)
    return Signal(np.array(answer, np.int32), ids, logprobs, np.full(len(answer), 0.2, np.float32))


def test_replay_makes_up_its_share_of_the_mixture() -> None:
    assert replay_count(200, 1 / 3, 1000) == 100
    assert replay_count(200, 1 / 3, 40) == 40
    assert replay_count(200, 0.0, 1000) == 0


def test_a_draw_has_no_row_twice() -> None:
    drawn = draw(50, 20, seed=1)
    assert len(set(drawn.tolist())) == 20
    assert drawn.tolist() == draw(50, 20, seed=1).tolist()


def test_a_mixture_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    prompts = [np.array([5, 6, 7], np.int32), np.array([8], np.int32)]
    keys = np.arange(64, dtype=np.uint8).reshape(2, 32)
    save(tmp_path / "mixture.safetensors", prompts, keys)
    back = load(tmp_path / "mixture.safetensors")
    assert len(back) == 2
    assert back.prompt(0).tolist() == [5, 6, 7]
    assert back.prompt(1).tolist() == [8]
    assert (back.keys == keys).all()
    assert back.weights.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": np.array([2, 0], np.float32)}, r"row 1 has the weight 0.0; weights are finite and above 0"),
        ({"weights": np.array([-1, 3], np.float32)}, r"row 0 has the weight -1.0"),
        ({"weights": np.array([1, np.nan], np.float32)}, r"row 1 has the weight nan"),
        ({"weights": np.array([np.inf, 1], np.float32)}, r"row 0 has the weight inf"),
        ({"weights": np.ones(3, np.float32)}, r"rows of another shape"),
        ({"keys": np.zeros((2, 31), np.uint8)}, r"rows of another shape"),
        ({"offsets": np.array([0, 3])}, r"rows of another shape"),
        ({"tokens": np.array([5, 6, 7, -8], np.int32)}, r"row 1 has the token id -8; ids are from 0 on"),
        ({"tokens": np.array([5.0, 6.0, 7.0, 8.0])}, r"tokens and offsets are to be signed whole numbers"),
        ({"offsets": np.array([0, 3, 5])}, r"its offsets do not divide its 4 tokens into prompts"),
        ({"offsets": np.array([0, 5, 4])}, r"its offsets do not divide its 4 tokens into prompts"),
    ],
)
def test_a_mixture_that_cannot_be_learned_from_is_named_and_what_is_wrong_with_it(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "mixture.safetensors"
    save(path, [np.array([5, 6, 7], np.int32), np.array([8], np.int32)], np.zeros((2, 32), np.uint8))
    save_file({**load_file(path), **changes}, path)
    with pytest.raises(InputError, match=rf"mixture '.*mixture.safetensors': {message}"):
        load(path)


def made(folder: Path, prompts: list[list[int]], answers: list[list[int]], weights: list[float]) -> Any:
    """A mixture of these rows and the store of their signals."""
    store, tokens = SignalStore(folder), [np.array(prompt, np.int32) for prompt in prompts]
    keys = [key("teacher", "topk:2", "greedy", prompt) for prompt in tokens]
    store.put([(k, len(p), signal(a)) for k, p, a in zip(keys, tokens, answers, strict=True)])
    offsets = np.cumsum([0, *map(len, prompts)])
    joined = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32)
    return Mixture(np.concatenate(tokens), offsets, joined, np.array(weights, np.float32)), store


def test_a_batch_predicts_each_token_from_the_one_before(tmp_path: Path) -> None:
    rows = made(tmp_path, [[10, 11, 12], [20], [30, 31]], [[3, 4], [5, 6, 7], [8]], [1, 1, 1])
    batch = collate(*rows, [[0, 2], [1]], pad=0)
    assert batch.input_ids.tolist() == [[10, 11, 12, 3, 4, 30, 31, 8], [20, 5, 6, 7, 0, 0, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 3, 0, 0, 0, 0]]
    assert batch.filled.tolist() == [[1] * 8, [1, 1, 1, 1, 0, 0, 0, 0]]
    assert batch.answer.tolist() == [3, 4, 8, 5, 6, 7]
    assert batch.prompt.tolist() == [11, 12, 31]
    flat = batch.input_ids.ravel()
    assert flat[batch.answer_at + 1].tolist() == batch.answer.tolist()
    assert flat[batch.prompt_at + 1].tolist() == batch.prompt.tolist()
    assert isinstance(batch.signal, Signal)
    assert batch.signal.ids[:, 0].tolist() == batch.answer.tolist()


def test_a_pass_without_rows_has_no_token(tmp_path: Path) -> None:
    batch = collate(*made(tmp_path, [[1]], [[2]], [1]), [], pad=7)
    assert set(batch.input_ids.ravel().tolist()) == {7}
    assert batch.filled.all()
    assert len(batch.answer) == len(batch.answer_share) == len(batch.prompt) == 0
    assert batch.signal is None


@pytest.mark.parametrize("tokens", [64, 75])
def test_padding_is_no_longer_than_the_context_of_a_model_with_learned_positions(tokens: int, tmp_path: Path) -> None:
    transformers.set_seed(0)
    student = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=80, n_positions=75, n_embd=16, n_layer=1, n_head=2)
    )
    settings = TrainingSettings(packing=False, device="cpu", prompt_weight=0.5)
    layout, _ = layout_of(student, settings)
    rows = made(tmp_path, [list(range(tokens - 5)), [1, 2, 3]], [[3, 4, 5, 6, 7], [8]], [1, 1])
    batches = Batches(*rows, tokens_per_step=1000, tokens_per_pass=1000, layout=layout, width=16, pad=0, seed=0)
    assert layout == "padded"
    model = Objective(student, settings, layout)
    for members in ([[0], [1]], []):
        batch = batches._batch(members, (6.0, 70.0))
        assert batch.input_ids.shape[1] <= 75
        assert model(batch)[0].isfinite()


@pytest.mark.parametrize(
    ("prompt", "answer", "message"),
    [
        ([1, 64], [3], "prompts and answers have token id 64, and the student has 64 tokens"),
        ([1, 2], [70], "prompts and answers have token id 70, and the student has 64 tokens"),
        ([1, 2], [63], "teacher signals have token id 64, and the student has 64 tokens"),  # kept beside the answer's
    ],
)
def test_tokens_that_the_student_does_not_have_are_named(
    prompt: list[int], answer: list[int], message: str, tmp_path: Path
) -> None:
    config = transformers.GPT2Config(vocab_size=64, n_positions=75, n_embd=16, n_layer=1, n_head=2)
    settings = TrainingSettings(device="cpu")
    model = Objective(transformers.GPT2LMHeadModel(config), settings, "padded")
    rows = made(tmp_path, [prompt], [answer], [1])
    with pytest.raises(InputError, match=f"the mixture's {message}.* another tokenizer"):
        model(collate(*rows, [[0]], pad=0))


@pytest.mark.parametrize(("processes", "tokens_per_pass"), [(1, 10_000), (1, 20), (3, 20), (5, 10_000)])
@pytest.mark.parametrize("layout", ["padded", "packed", "flat"])
def test_shares_are_a_weighted_mean_over_the_global_batch(
    layout: Layout, processes: int, tokens_per_pass: int, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    prompts = [random.integers(0, 50, n).tolist() for n in random.integers(1, 12, 30)]
    answers = [random.integers(0, 50, n).tolist() for n in random.integers(1, 6, 30)]
    weights = random.uniform(0.5, 1.5, 30).tolist()
    mixture, store = made(tmp_path, prompts, answers, weights)
    limits: dict[str, Any] = {"tokens_per_step": 60, "tokens_per_pass": tokens_per_pass, "pad": 0, "seed": 0}
    parts = [
        Batches(mixture, store, layout=layout, width=8, rank=rank, processes=processes, **limits).step(1)
        for rank in range(processes)
    ]
    assert len({len(part.passes) for part in parts}) == 1  # or some would wait for the others for ever
    assert len({tuple(part.rows) for part in parts}) == 1
    rows, passes = parts[0].rows, [batch for part in parts for batch in part.passes]
    assert (
        sum(len(batch.answer) for batch in passes) == sum(len(answers[row]) for row in rows) == parts[0].answer_tokens
    )
    assert sum(len(batch.prompt) for batch in passes) == sum(len(prompts[row]) - 1 for row in rows)
    assert sum(batch.answer_share.sum() for batch in passes) == pytest.approx(1, rel=1e-6)
    assert sum(batch.prompt_share.sum() for batch in passes) == pytest.approx(1, rel=1e-6)
    of_weight = [weights[row] for row in rows]
    shares = [float(share) for batch in passes for share in batch.answer_share]
    assert max(shares) / min(shares) == pytest.approx(max(of_weight) / min(of_weight), rel=1e-5)


def test_the_rows_of_a_step_do_not_depend_on_processes_or_passes(tmp_path: Path) -> None:
    mixture, store = made(tmp_path, [[n, n] for n in range(40)], [[1] * (1 + n % 5) for n in range(40)], [1] * 40)
    ways: list[dict[str, Any]] = [
        {"processes": 1, "tokens_per_pass": 100, "layout": "packed"},
        {"processes": 3, "tokens_per_pass": 9, "layout": "padded"},
    ]
    one, other = (Batches(mixture, store, tokens_per_step=30, width=8, pad=0, seed=3, **way) for way in ways)
    assert [one.step(n).rows for n in range(12)] == [other.step(n).rows for n in range(12)]


def test_a_row_without_a_prompt_or_a_signal_is_named(tmp_path: Path) -> None:
    limits: dict[str, Any] = {"tokens_per_step": 9, "tokens_per_pass": 9, "layout": "packed", "width": 8}
    mixture, store = made(tmp_path / "a", [[1], []], [[2], [3]], [1, 1])
    with pytest.raises(InputError, match="row 1 of the mixture has an empty prompt"):
        Batches(mixture, store, pad=0, seed=0, **limits)
    mixture, _ = made(tmp_path / "b", [[1]], [[2]], [1])
    with pytest.raises(Failure, match="no signal"):
        Batches(mixture, SignalStore(tmp_path / "empty"), pad=0, seed=0, **limits)
