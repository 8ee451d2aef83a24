"""Scoring: what the checkpoint would answer, and how sure it is."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distill.models import load_model
from distill.prompts import load_tokenizer
from distill.scoring import score

PROMPTS = ["The printer does not print", "log in", "How do I set up the mail program?", "x"]
LIMITS: dict[str, Any] = {"max_prompt_tokens": 100, "max_new_tokens": 5, "device": "cpu"}


def test_scores_are_those_of_each_prompt_by_itself(tiny_checkpoint: Path) -> None:
    seen: list[tuple[int, int]] = []
    scores = score(tiny_checkpoint, PROMPTS, batch_size=3, progress=lambda *done: seen.append(done), **LIMITS)
    assert seen == [(3, 4), (4, 4)]
    model, tokenizer = load_model(tiny_checkpoint, "cpu"), load_tokenizer(tiny_checkpoint)
    for at, prompt in enumerate(PROMPTS):
        turn = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        output = model.generate(ids, do_sample=False, max_new_tokens=5)
        answer = output[0, ids.shape[1] :]
        with torch.no_grad():
            logprobs = model(output).logits[0, ids.shape[1] - 1 : -1].log_softmax(-1)
        assert scores.responses[at] == tokenizer.decode(answer, skip_special_tokens=True)
        assert scores.tokens[at] == len(answer)
        mean = logprobs.gather(1, answer[:, None]).mean().item()
        np.testing.assert_allclose(scores.mean_logprob[at], mean, atol=1e-5)
    assert scores.truncated == 0


def test_the_stop_token_counts_but_is_no_text(tiny_checkpoint: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "stopping")
    tokenizer = load_tokenizer(copy)
    text = score(copy, ["log in"], **LIMITS).responses[0]
    answer = tokenizer(text, add_special_tokens=False)["input_ids"]
    model = load_model(copy, "cpu")
    model.generation_config.eos_token_id = [1, answer[1]]
    model.generation_config.save_pretrained(copy)
    scores = score(copy, ["log in"], **LIMITS)
    assert scores.tokens.tolist() == [2]
    assert scores.responses == [tokenizer.decode(answer[:1])]


def test_cut_prompts_are_counted(tiny_checkpoint: Path) -> None:
    limits = {**LIMITS, "max_prompt_tokens": 6}
    assert score(tiny_checkpoint, [*PROMPTS, "printer " * 50], **limits).truncated == 3


def test_no_prompts_give_no_scores(tiny_checkpoint: Path) -> None:
    scores = score(tiny_checkpoint, [], **LIMITS)
    assert (scores.responses, scores.truncated) == ([], 0)
    assert (scores.mean_logprob.shape, scores.mean_logprob.dtype) == ((0,), np.float64)
    assert (scores.tokens.shape, scores.tokens.dtype) == ((0,), np.int64)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_batch_size_changes_nothing(tiny_checkpoint: Path, batch_size: int) -> None:
    one = score(tiny_checkpoint, PROMPTS, batch_size=batch_size, **LIMITS)
    other = score(tiny_checkpoint, PROMPTS, **LIMITS)
    assert one.responses == other.responses
    np.testing.assert_allclose(one.mean_logprob, other.mean_logprob, atol=1e-5)
