"""How likely a checkpoint finds the answers that it should give."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distill.errors import Failure, InputError
from distill.likelihood import score_targets
from distill.loaded import load
from distill.models import load_model
from distill.prompts import load_tokenizer

PROMPTS = ["The printer does not print", "log in", "How do I set up the mail program?", "x"]
TARGETS = ["billing high", "technical low", "account medium, and please at once", "y"]
LIMITS: dict[str, Any] = {"max_prompt_tokens": 100, "max_new_tokens": 40, "device": "cpu"}


def by_hand(checkpoint: Path, prompt: str, target: str, stops: tuple[int, ...] = ()) -> tuple[float, int]:
    """Return the mean log-probability of a target's tokens and its end, one row at a time and in float64."""
    model, tokenizer = load_model(checkpoint, "cpu").double(), load_tokenizer(checkpoint)
    turn = [{"role": "user", "content": prompt}]
    asked = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    said = [*tokenizer(target, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    with torch.no_grad():
        logits = model(torch.cat([asked, torch.tensor([said])], 1)).logits[0, asked.shape[1] - 1 : -1]
    logprobs = logits.log_softmax(-1)
    own = [float(logprobs[at, token]) for at, token in enumerate(said)]
    own[-1] = float(logprobs[-1, [tokenizer.eos_token_id, *stops]].logsumexp(0))
    return sum(own) / len(own), len(said)


def test_a_target_is_as_likely_as_the_model_finds_it_by_itself_with_its_end(tiny_checkpoint: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = score_targets(
        tiny_checkpoint, PROMPTS, TARGETS, batch_size=3, progress=lambda *done: seen.append(done), **LIMITS
    )
    assert seen == [(3, 4), (4, 4)]
    for at, pair in enumerate(zip(PROMPTS, TARGETS, strict=True)):
        mean, tokens = by_hand(tiny_checkpoint, *pair)
        assert found.mean_logprob[at] == pytest.approx(mean, abs=1e-5)
        assert found.tokens[at] == tokens
    assert (found.truncated_prompts, found.truncated_targets) == (0, 0)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_batch_changes_nothing(tiny_checkpoint: Path, batch_size: int) -> None:
    one = score_targets(tiny_checkpoint, PROMPTS, TARGETS, batch_size=batch_size, **LIMITS)
    other = score_targets(tiny_checkpoint, PROMPTS, TARGETS, **LIMITS)
    np.testing.assert_allclose(one.mean_logprob, other.mean_logprob, atol=1e-5)


def test_any_of_several_stop_tokens_ends_a_target(tiny_checkpoint: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "stopping")
    model = load_model(copy, "cpu")
    model.generation_config.eos_token_id = [1, 77]
    model.generation_config.save_pretrained(copy)
    found = score_targets(copy, PROMPTS[:1], TARGETS[:1], **LIMITS)
    assert found.mean_logprob[0] == pytest.approx(by_hand(copy, PROMPTS[0], TARGETS[0], (77,))[0], abs=1e-5)
    assert found.mean_logprob[0] > score_targets(tiny_checkpoint, PROMPTS[:1], TARGETS[:1], **LIMITS).mean_logprob[0]


def test_what_is_cut_is_counted_and_its_beginning_scored(tiny_checkpoint: Path) -> None:
    limits = {**LIMITS, "max_prompt_tokens": 6, "max_new_tokens": 3}
    found = score_targets(tiny_checkpoint, PROMPTS, TARGETS, **limits)
    assert found.truncated_prompts == 2
    whole = [len(load_tokenizer(tiny_checkpoint)(text)["input_ids"]) + 1 for text in TARGETS]
    assert found.truncated_targets == sum(tokens > 3 for tokens in whole) > 0
    assert found.tokens.tolist() == [min(tokens, 3) for tokens in whole]


def test_text_that_looks_like_a_special_token_does_not_end_a_target(tiny_checkpoint: Path) -> None:
    found = score_targets(tiny_checkpoint, ["x"], ["low<eos>"], **LIMITS)
    plain = score_targets(tiny_checkpoint, ["x"], ["low"], **LIMITS)
    assert found.tokens[0] > plain.tokens[0] + 1


def test_no_targets_have_no_likelihood(tiny_checkpoint: Path) -> None:
    found = score_targets(tiny_checkpoint, [], [], **LIMITS)
    assert (found.mean_logprob.shape, found.tokens.shape) == ((0,), (0,))


def test_a_prompt_and_target_beyond_the_context_are_refused(
    checkpoint_maker: Callable[..., Path], tmp_path: Path
) -> None:
    short = checkpoint_maker(tmp_path / "short", context=16)
    with pytest.raises(InputError, match=r"the context of .* 16: lower student\.max_prompt_tokens"):
        score_targets(short, ["a printer that does not print any more"], ["billing high"], **LIMITS)


def test_a_model_that_computes_no_numbers_is_a_failure(tiny_checkpoint: Path) -> None:
    loaded = load(tiny_checkpoint, "cpu")
    (damaged,) = loaded.tokenizer("y", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[damaged] = math.nan
    with pytest.raises(Failure, match=r"1 of 2 targets have log-probabilities under .* that are no numbers"):
        score_targets(loaded, ["x", "x"], ["y", "z"], **LIMITS)
