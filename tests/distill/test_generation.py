"""Greedy generation against a forward pass over the whole sequence."""

import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from distill.errors import Failure, InputError
from distill.generation import Generated, Sampling, greedy, greedy_batches, sampled, stop_and_pad
from distill.models import load_model, resolve_device
from distill.prompts import encode, load_tokenizer

PROMPTS = [
    "The printer on the second floor does not print any more",
    "log in",
    "How do I set up the mail program?",
    "invoice",
    "The new laptop loses its connection, please send me another one, and soon",
    "x",
]


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Any:
    return load_model(tiny_checkpoint, "cpu")


@pytest.fixture(scope="module")
def prompts(tiny_checkpoint: Path) -> list[NDArray[np.int32]]:
    return encode(load_tokenizer(tiny_checkpoint), PROMPTS, 100).ids


@pytest.fixture(scope="module")
def stops(model: Any, prompts: list[NDArray[np.int32]]) -> list[int]:
    """Tokens that the random model does say, so that some answers end early."""
    answers = greedy(model, prompts, max_new_tokens=8, eos=[1], pad=0)
    return [int(answers[0].answer[2]), int(answers[1].answer[4])]


def whole_pass(model: Any, prompt: NDArray[np.int32], answer: NDArray[np.int32]) -> NDArray[np.float64]:
    """Log-probabilities (T, V) of every token at each position of the answer, in one pass without a cache."""
    ids = torch.tensor(np.concatenate([prompt, answer]))[None].long()
    with torch.no_grad():
        logits = model(ids).logits[0, len(prompt) - 1 : -1].double()
    return logits.log_softmax(-1).numpy()  # type: ignore[no-any-return]


def same(one: Generated, other: Generated) -> None:
    np.testing.assert_array_equal(one.answer, other.answer)
    np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)
    np.testing.assert_allclose(one.tail, other.tail, atol=1e-5)
    np.testing.assert_allclose(one.topk.astype(float), other.topk.astype(float), atol=1e-2)


def test_a_batch_answers_as_one_by_one_does(model: Any, prompts: Any, stops: list[int]) -> None:
    options: dict[str, Any] = {"max_new_tokens": 8, "eos": stops, "pad": 0, "top_k": 5}
    batched = greedy(model, prompts, batch_size=4, **options)
    assert {len(row.answer) for row in batched} != {8}  # some ended early
    for prompt, row in zip(prompts, batched, strict=True):
        same(row, greedy(model, [prompt], **options)[0])


def test_the_log_probabilities_are_those_of_a_whole_forward_pass(model: Any, prompts: Any) -> None:
    for prompt, row in zip(prompts, greedy(model, prompts, max_new_tokens=6, eos=[1], pad=0, top_k=7), strict=True):
        expected = whole_pass(model, prompt, row.answer)  # (T, V)
        likeliest = np.argsort(-expected, axis=1)[:, :7]
        kept = np.take_along_axis(expected, row.ids.astype(np.int64), 1)
        np.testing.assert_array_equal(row.answer, expected.argmax(1))
        np.testing.assert_allclose(row.logprobs, expected.max(1), atol=1e-5)
        np.testing.assert_allclose(kept, np.take_along_axis(expected, likeliest, 1), atol=1e-5)
        np.testing.assert_allclose(row.topk, kept, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(row.tail, 1 - np.exp(kept).sum(1), atol=1e-6)
        assert (row.answer.dtype, row.logprobs.dtype, row.ids.dtype) == (np.int32, np.float32, np.int32)
        assert (row.topk.dtype, row.tail.dtype) == (np.float16, np.float32)


def test_an_answer_ends_with_its_first_stop_token(model: Any, prompts: Any, stops: list[int]) -> None:
    free = greedy(model, prompts, max_new_tokens=8, eos=[1], pad=0)
    for row, whole in zip(greedy(model, prompts, max_new_tokens=8, eos=stops, pad=0), free, strict=True):
        at = [place for place, token in enumerate(whole.answer) if token in stops]
        assert row.answer.tolist() == whole.answer[: at[0] + 1 if at else 8].tolist()
        assert len(row.logprobs) == len(row.answer)


def test_the_tail_does_not_cancel_where_the_model_is_sure(tiny_checkpoint: Path, prompts: Any) -> None:
    sure = load_model(tiny_checkpoint, "cpu")
    with torch.no_grad():
        sure.lm_head.weight.mul_(8.0)
    rows = greedy(sure, prompts, max_new_tokens=4, eos=[1], pad=0, top_k=40)
    tails = np.concatenate([row.tail for row in rows])
    exact = []
    for prompt, row in zip(prompts, rows, strict=True):
        logprobs = whole_pass(sure, prompt, row.answer)
        np.put_along_axis(logprobs, row.ids.astype(np.int64), -np.inf, 1)
        exact.append(np.exp(logprobs).sum(1))
    assert tails.min() < 1e-8  # below what 1 - sum could resolve in float32
    np.testing.assert_allclose(tails, np.concatenate(exact), rtol=1e-2)


def test_the_checkpoints_sampling_settings_change_nothing_and_stay(
    tiny_checkpoint: Path,
    prompts: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "sampling")
    (copy / "generation_config.json").write_text(
        '{"do_sample": true, "temperature": 3.0, "top_p": 0.5, "repetition_penalty": 5.0, "eos_token_id": [1, 2], '
        '"num_beams": 3, "max_length": 5, "suppress_tokens": [5, 6, 7]}'
    )
    plain, sampling = load_model(tiny_checkpoint, "cpu"), load_model(copy, "cpu")
    caplog.clear()
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = greedy(sampling, prompts, max_new_tokens=6, eos=[1], pad=0)
    assert not caplog.records
    assert sampling.generation_config.repetition_penalty == 5.0
    for row, expected in zip(rows, greedy(plain, prompts, max_new_tokens=6, eos=[1], pad=0), strict=True):
        same(row, expected)


def test_rows_come_batch_by_batch_and_progress_counts_them(model: Any, prompts: Any) -> None:
    seen: list[tuple[int, int]] = []
    greedy(
        model,
        prompts,
        max_new_tokens=1,
        eos=[1],
        pad=0,
        batch_size=4,
        progress=lambda *done: seen.append(done),
    )
    assert seen == [(4, 6), (6, 6)]
    batches = list(greedy_batches(model, prompts, max_new_tokens=1, eos=[1], pad=0, batch_size=4))
    assert sorted(at for rows in batches for at, _ in rows) == list(range(6))
    assert greedy(model, [], max_new_tokens=1, eos=[1], pad=0) == []


def test_ids_beyond_the_vocabulary_are_never_said(model: Any, prompts: Any) -> None:
    rows = greedy(model, prompts, max_new_tokens=4, eos=[1], pad=0, top_k=50, vocabulary=50)
    assert max(row.ids.max() for row in rows) == 49
    assert max(row.tail.max() for row in rows) == 0


def test_what_the_model_cannot_take_is_refused(model: Any, prompts: Any) -> None:
    options: dict[str, Any] = {"eos": [1], "pad": 0}
    with pytest.raises(InputError, match="vocabulary of 320"):
        greedy(model, prompts, max_new_tokens=4, top_k=321, **options)
    with pytest.raises(InputError, match=r"exceed the context of .* 256 tokens"):
        greedy(model, prompts, max_new_tokens=250, **options)
    with pytest.raises(InputError, match="token id 400"):
        greedy(model, [np.array([400], np.int32)], max_new_tokens=4, **options)
    with pytest.raises(InputError, match="1 of 1 prompts have no token"):
        greedy(model, [np.zeros(0, np.int32)], max_new_tokens=4, **options)


def test_a_model_that_computes_no_numbers_is_a_failure(tiny_checkpoint: Path, prompts: Any) -> None:
    broken = load_model(tiny_checkpoint, "cpu")
    with torch.no_grad():
        broken.lm_head.weight[7] = float("nan")
    with pytest.raises(Failure, match="no numbers"):
        greedy(broken, prompts, max_new_tokens=2, eos=[1], pad=0)


def test_stop_tokens_come_from_generation_config_and_tokenizer(tiny_checkpoint: Path) -> None:
    model, tokenizer = load_model(tiny_checkpoint, "cpu"), load_tokenizer(tiny_checkpoint)
    assert stop_and_pad(model, tokenizer) == ([1], 0)
    model.generation_config.eos_token_id = [3, 5]
    tokenizer.pad_token = None
    assert stop_and_pad(model, tokenizer) == ([1, 3, 5], 1)
    model.generation_config.eos_token_id = tokenizer.eos_token = None
    with pytest.raises(InputError, match="names no eos token"):
        stop_and_pad(model, tokenizer)


def test_a_checkpoint_that_lacks_a_weight_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(tiny_checkpoint, tmp_path / "lacking")
    weights = load_file(copy / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacking.*model\.norm\.weight"):
        load_model(copy, "cpu")
    (copy / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(InputError, match=r"lacking.* cannot be loaded"):
        load_model(copy, "cpu")


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(InputError, match="'cuda'"):
        resolve_device("cuda")


def test_samples_come_as_often_as_the_model_at_that_temperature_says(model: Any, prompts: Any) -> None:
    prompt, temperature, draws = prompts[1], 0.7, 400
    rows = [
        sampled(model, [prompt], Sampling(temperature, seed), max_new_tokens=1, eos=[1], pad=0)[0]
        for seed in range(draws)
    ]
    logprobs = whole_pass(model, prompt, rows[0].answer)[0]
    odds = np.exp(logprobs / temperature)
    likeliest = int(logprobs.argmax())
    share = np.mean([row.answer[0] == likeliest for row in rows])
    expected = float(odds[likeliest] / odds.sum())
    assert 0.1 < expected < 0.99
    assert share == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / draws))
    for row in rows[:20]:
        assert row.logprobs[0] == pytest.approx(logprobs[row.answer[0]], abs=1e-5)


def test_a_sample_is_a_pure_function_of_seed_and_prompt_whatever_the_batch(model: Any, prompts: Any) -> None:
    options: dict[str, Any] = {"max_new_tokens": 6, "eos": [1], "pad": 0}
    together = sampled(model, prompts, Sampling(1.0, 5), batch_size=6, **options)
    apart = sampled(model, prompts[::-1], Sampling(1.0, 5), batch_size=2, **options)[::-1]
    other = sampled(model, prompts, Sampling(1.0, 6), **options)
    for one, two in zip(together, apart, strict=True):
        np.testing.assert_array_equal(one.answer, two.answer)
    assert [row.answer.tolist() for row in together] != [row.answer.tolist() for row in other]


def test_nearly_without_temperature_samples_are_the_greedy_answers(model: Any, prompts: Any) -> None:
    options: dict[str, Any] = {"max_new_tokens": 6, "eos": [1], "pad": 0, "top_k": 3}
    cold = sampled(model, prompts, Sampling(1e-4, 0), **options)
    for one, two in zip(cold, greedy(model, prompts, **options), strict=True):
        same(one, two)
