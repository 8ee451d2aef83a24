"""The order of the rows, and what a batch holds."""

from pathlib import Path

import numpy as np

from distill.batches import IGNORED, Order, collate, step_count
from distill.mixture import Mixture, draw, load, replay_count, save
from distill.signals import SignalStore, key
from distill.teachers.protocol import Signal

LENGTHS = np.random.default_rng(0).integers(1, 50, 100)


def signal(answer: list[int], k: int = 2) -> Signal:
    ids = np.stack([np.array(answer), np.array(answer) + 1], 1).astype(np.int32)[:, :k]
    logprobs = np.log(np.full(ids.shape, 0.4)).astype(np.float16)
    return Signal(np.array(answer, np.int32), ids, logprobs, np.full(len(answer), 0.2, np.float32))


def test_every_row_comes_once_in_each_pass() -> None:
    order, rows = Order(LENGTHS[:10], 4, 7), 10
    taken = [row for step in range(5) for row in order.rows(step)]
    assert sorted(taken[:rows]) == list(range(rows))
    assert sorted(taken[rows:]) == list(range(rows))
    assert taken[:rows] != taken[rows:]


def test_the_order_is_a_pure_function_of_seed_and_step() -> None:
    straight = [Order(LENGTHS, 8, 3).rows(step) for step in range(30)]
    resumed = Order(LENGTHS, 8, 3)
    assert [resumed.rows(step) for step in range(17, 30)] == straight[17:]
    assert Order(LENGTHS, 8, 4).rows(17) != straight[17]


def test_rows_of_a_batch_are_of_about_the_same_length() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 1024)
    order, shuffled = Order(lengths, 32, 0), np.random.default_rng(1).permutation(1024).reshape(-1, 32)
    grouped = np.mean([np.ptp(lengths[order.rows(step)]) for step in range(32)])
    assert grouped < 0.5 * np.mean([np.ptp(lengths[rows]) for rows in shuffled])


def test_steps_cover_the_epochs() -> None:
    assert step_count(100, 2.0, 64) == 4
    assert step_count(1, 0.1, 64) == 1


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


def test_a_batch_predicts_each_answer_token_from_the_one_before(tmp_path: Path) -> None:
    store = SignalStore(tmp_path)
    prompts = [np.array([10, 11, 12], np.int32), np.array([20], np.int32)]
    answers = [[3, 4], [5, 6, 7]]
    keys = [key("teacher", "topk:2", "greedy", prompt) for prompt in prompts]
    store.put([(k, len(p), signal(a)) for k, p, a in zip(keys, prompts, answers, strict=True)])
    tokens, offsets = np.concatenate(prompts), np.array([0, 3, 4])
    of_rows = np.frombuffer(b"".join(keys), np.uint8).reshape(2, 32)
    mixture = Mixture(tokens, offsets, of_rows, np.ones(2, np.float32))
    batch = collate(mixture, store, [0, 1], pad=0)
    assert batch.input_ids.tolist() == [[10, 11, 12, 3, 4], [20, 5, 6, 7, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert batch.answer.tolist() == [3, 4, 5, 6, 7]
    flat = batch.input_ids.ravel()
    assert [int(flat[at + 1]) for at in batch.answer_at] == batch.answer.tolist()
    assert batch.prompt_labels.tolist() == [[11, 12] + [IGNORED] * 3, [IGNORED] * 5]
    assert (batch.answer_tokens, batch.prompt_tokens) == (5, 2)
