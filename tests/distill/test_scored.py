"""A teacher scores answers it has not given: by token ids, in one pass, each bought once."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from distill.buying import fetch
from distill.errors import Failure, InputError
from distill.models import load_model
from distill.prompts import encode, load_tokenizer
from distill.signals import SignalStore
from distill.teachers.local import LocalTeacher
from distill.teachers.local_scores import LocalScores
from distill.teachers.protocol import AnySignal, HiddenSignal, Signal
from distill.teachers.scored import Progress, Spoken, scores_of
from distill.teachers.sglang_replies import Asked, scored_of

K = 8


def spoken(checkpoint: Path, count: int, seed: int = 0) -> list[Spoken]:
    """Return prompts with answers of random tokens: what no model says, in lengths of all kinds."""
    prompts = encode(
        load_tokenizer(checkpoint), [f"the printer {n}" + " at all" * (n % 9) for n in range(count)], 96
    ).ids
    rng = np.random.default_rng(seed)
    return [Spoken(prompt, rng.integers(4, 300, int(rng.integers(1, 20)), dtype=np.int32)) for prompt in prompts]


def wanted(checkpoint: Path, row: Spoken) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Return transformers' log-probabilities (T, V) and final states (T, D) where the answer's tokens are predicted."""
    model = load_model(checkpoint, "cpu")
    with torch.inference_mode():
        out = model(torch.from_numpy(row.whole.astype(np.int64))[None], output_hidden_states=True)
    where = slice(len(row.prompt) - 1, len(row) - 1)
    return out.logits[0, where].double().log_softmax(-1).numpy(), out.hidden_states[-1][0, where].numpy()


def test_scores_are_transformers_log_probabilities_of_the_same_ids(tiny_checkpoint: Path) -> None:
    rows = spoken(tiny_checkpoint, 24)
    found = dict(LocalScores(tiny_checkpoint, top_k=K, max_new_tokens=1, batch_size=7, device="cpu").score(rows))
    assert sorted(found) == list(range(24))
    for at, row in enumerate(rows):
        signal, (logprobs, _) = found[at], wanted(tiny_checkpoint, row)
        assert isinstance(signal, Signal)
        assert signal.answer.tolist() == row.answer.tolist()
        likeliest = np.sort(logprobs, 1)[:, ::-1][:, :K]
        np.testing.assert_allclose(np.take_along_axis(logprobs, signal.ids.astype(np.int64), 1), likeliest, atol=1e-5)
        # A float16 is kept of a log-probability: one rounding apart.
        np.testing.assert_allclose(signal.logprobs.astype(float), likeliest, rtol=2**-11, atol=1e-5)
        np.testing.assert_allclose(signal.tail, 1 - np.exp(likeliest).sum(1), atol=1e-5)


def test_final_states_are_transformers_and_one_log_probability_a_token_goes_with_them(tiny_checkpoint: Path) -> None:
    rows = spoken(tiny_checkpoint, 9)
    scorer = LocalScores(tiny_checkpoint, top_k=K, max_new_tokens=1, device="cpu", signals_format="hidden:bf16")
    for at, signal in scorer.score(rows):
        logprobs, states = wanted(tiny_checkpoint, rows[at])
        assert isinstance(signal, HiddenSignal)
        np.testing.assert_allclose(signal.states, states, atol=1e-5 * np.abs(states).max())
        own = logprobs[np.arange(len(rows[at].answer)), rows[at].answer]
        np.testing.assert_allclose(signal.logprobs.astype(float), own, rtol=2**-11, atol=1e-5)


def test_a_teachers_own_answers_have_the_scores_that_it_gave_with_them(tiny_checkpoint: Path) -> None:
    prompts = [row.prompt for row in spoken(tiny_checkpoint, 12)]
    given = dict(LocalTeacher(tiny_checkpoint, top_k=K, max_new_tokens=6, device="cpu").ask(prompts))
    rows = [Spoken(prompt, given[at].answer) for at, prompt in enumerate(prompts)]
    for at, signal in LocalScores(tiny_checkpoint, top_k=K, max_new_tokens=1, device="cpu").score(rows):
        own = given[at]
        assert isinstance(signal, Signal)
        assert isinstance(own, Signal)
        assert (signal.ids[:, 0] == own.answer).all()
        np.testing.assert_allclose(signal.logprobs.astype(float), own.logprobs.astype(float), rtol=2**-9, atol=1e-4)


class Noting:
    """A scorer that notes what it was given."""

    digest, format = "noting", "topk:1"

    def __init__(self, ends_after: int = 10**9) -> None:
        self.seen: list[list[int]] = []
        self.ends_after = ends_after

    def check(self, tokenizer: Any, top_k: int) -> None:
        """Any will do."""

    def score(self, rows: Sequence[Spoken], progress: Progress | None = None) -> Iterator[tuple[int, AnySignal]]:
        """Yield made-up signals."""
        for at, row in enumerate(rows):
            if len(self.seen) == self.ends_after:
                raise KeyboardInterrupt
            self.seen.append(row.whole.tolist())
            tokens = len(row.answer)
            ones = np.zeros((tokens, 1), np.float16)
            yield at, Signal(row.answer, row.answer[:, None], ones, np.zeros(tokens, np.float32))


def test_ids_that_no_text_has_reach_the_teacher_and_the_store_as_they_are(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(tiny_checkpoint)
    whole = tokenizer("printer")["input_ids"]
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in "printer"]
    assert tokenizer.decode(letters) == "printer"
    assert tokenizer(tokenizer.decode(letters))["input_ids"] == whole != letters  # text would make other ids of them
    scorer, store = Noting(), SignalStore(tmp_path)
    row = Spoken(np.array([5, 6], np.int32), np.array(letters, np.int32))
    found = fetch(store, scores_of(scorer, [row]))
    assert scorer.seen == [[5, 6, *letters]]
    assert store.get(found.keys[0].tobytes()).answer.tolist() == letters
    assert store.tokens(found.keys).tolist() == [2 + len(letters)]


def test_where_the_prompt_ends_is_part_of_the_key(tmp_path: Path) -> None:
    one, other = (Spoken(np.arange(end, dtype=np.int32), np.arange(end, 6, dtype=np.int32)) for end in (2, 3))
    assert one.whole.tolist() == other.whole.tolist()
    assert fetch(SignalStore(tmp_path), scores_of(Noting(), [one, other])).bought_rows == 2


def test_a_killed_scoring_buys_the_rest_alone(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rows = spoken(tiny_checkpoint, 10)
    with pytest.raises(KeyboardInterrupt):
        fetch(SignalStore(tmp_path), scores_of(Noting(ends_after=6), rows), flush_rows=2)
    again = Noting()
    found = fetch(SignalStore(tmp_path), scores_of(again, rows))
    assert (found.reused_rows, found.bought_rows, len(again.seen)) == (6, 4, 4)


@pytest.mark.parametrize(
    ("prompt", "answer", "told"),
    [([5], [], "no prompt or no answer"), ([5], [9999], "token ids 5 to 9999"), ([5] * 250, [6] * 9, "259 tokens")],
)
def test_rows_that_the_teacher_cannot_take_are_refused_by_name(
    prompt: list[int], answer: list[int], told: str, tiny_checkpoint: Path
) -> None:
    scorer = LocalScores(tiny_checkpoint, top_k=K, max_new_tokens=1, device="cpu")
    with pytest.raises(InputError, match=told):
        list(scorer.score([Spoken(np.array(prompt, np.int32), np.array(answer, np.int32))]))


ANSWER = np.array([4, 9, 1], np.int32)
ASKED = Asked(prompt_tokens=5, max_new_tokens=1, stops=[1], vocabulary=10, outputs=12, top_k=2, weights="student-1")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"weight_version": "student-2"}, "expected weights of version 'student-1', got 'student-2'"),
        ({"prompt_tokens": 4}, "expected 5 tokens of prompt, got 4"),
        (
            {"input_token_logprobs": [[None, 7, None], [-1.0, 4, None]]},
            "expected 3 log-probabilities, one a token, got 1",
        ),
        ({"input_token_logprobs": None}, "expected 3 log-probabilities, one a token, got 0"),
        ({"ids": [4, 9, 2]}, r"expected those of the tokens \[1\], got those of \[2\]"),
        ({"ids": [0, 9, 1]}, r"expected those of the tokens \[4\], got those of \[0\]"),
        ({"values": [-1.0, 0.5, -2.0]}, "expected log-probabilities <= 0, got 0.5"),
        ({"values": [-1.0, float("nan"), -2.0]}, "expected finite log-probabilities, got nan"),
    ],
)
def test_a_servers_scores_that_cannot_be_right_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(Failure, match=told):
        scored_of(scores(**changes), ANSWER, ASKED)


def test_a_servers_scores_follow_the_prompts_last_token_and_its_last_id_comes_back_as_0() -> None:
    assert scored_of(scores(), ANSWER, ASKED).tolist() == [-1.0, -0.5, -2.0]
    assert scored_of(scores(ids=[4, 0, 1]), ANSWER, ASKED).tolist() == [-1.0, -0.5, -2.0]


def scores(ids: Sequence[int] = (4, 9, 1), values: Sequence[float] = (-1.0, -0.5, -2.0), **changes: Any) -> Any:
    """Return a sound reply to a scored answer, with changes."""
    said = [[value, token, None] for value, token in zip(values, ids, strict=True)]
    meta = {"prompt_tokens": 5, "weight_version": "student-1", "input_token_logprobs": [[None, 7, None], *said]}
    return {"output_ids": [3], "meta_info": {**meta, **changes}}
