"""Replies of SGLang's /generate: what is read, and what is refused with what was expected and what came."""

import base64
from types import SimpleNamespace
from typing import Any, cast

import anyio
import numpy as np
import pytest

from distill.errors import Failure
from distill.teachers.servers import Server, Servers
from distill.teachers.sglang_job import Job, reading
from distill.teachers.sglang_replies import Asked, answer_of, answer_states_of, states_of, topk_of

ASKED = Asked(prompt_tokens=5, max_new_tokens=4, stops=[1], vocabulary=10, outputs=12, top_k=2, weights="default")
LOGPROBS = np.log(np.array([[0.5, 0.25], [0.9, 0.05], [0.6, 0.4]], np.float32))
IDS = np.array([[4, 7], [2, 3], [1, 9]], np.int32)


def packed(values: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(values.tobytes()).decode()


def reply(**changes: Any) -> dict[str, Any]:
    """Return a sound reply of three tokens with changes to its meta_info, and to output_ids."""
    ids = changes.pop("output_ids", [4, 2, 1])
    meta = {
        "prompt_tokens": 5,
        "weight_version": "default",
        "finish_reason": {"type": "stop"},
        "output_token_logprobs": [[logprob, 0, None] for logprob in LOGPROBS[:, 0].tolist()],
        "output_top_logprobs_shape": [3, 2],
        "output_top_logprobs_val_flat_b64": packed(LOGPROBS),
        "output_top_logprobs_val_flat_b64_dtype": "float32",
        "output_top_logprobs_idx_flat_b64": packed(IDS),
        "output_top_logprobs_idx_flat_b64_dtype": "int32",
    }
    return {"output_ids": ids, "meta_info": {**meta, **changes}}


def read(given: dict[str, Any]) -> Any:
    answer, _ = answer_of(given, ASKED)
    return topk_of(given, answer, ASKED)


def test_a_sound_reply_is_an_answer_with_its_top_k_and_the_mass_outside() -> None:
    found = read(reply())
    assert found.answer.tolist() == [4, 2, 1]
    assert found.ids.tolist() == IDS.tolist()
    np.testing.assert_allclose(found.logprobs, LOGPROBS, atol=1e-3)
    np.testing.assert_allclose(found.tail, [0.25, 0.05, 0.0], atol=1e-6)


def test_padding_among_the_likeliest_counts_as_mass_outside_of_which_another_token_has_an_even_share() -> None:
    found = read(reply(output_top_logprobs_idx_flat_b64=packed(np.array([[11, 7], [2, 3], [10, 11]], np.int32))))
    assert found.ids.tolist() == [[7, 0], [2, 3], [0, 1]]
    expected = [[0.25, 0.75 / 9], [0.9, 0.05], [0.1, 0.1]]
    np.testing.assert_allclose(np.exp(found.logprobs.astype(float)), expected, rtol=2e-3)
    np.testing.assert_allclose(found.tail, [0.75 * 8 / 9, 0.05, 0.8], atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"prompt_tokens": 4}, "expected 5 tokens of prompt, got 4"),
        ({"weight_version": "2"}, "expected weights of version 'default', got '2'"),
        ({"output_ids": [4, 10, 1]}, r"expected token ids in \[0, 10\), got \[10\]"),
        ({"output_ids": []}, "expected 1 to 4 tokens, got 0"),
        ({"output_ids": [4, 2, 3, 3, 1]}, "expected 1 to 4 tokens, got 5"),
        ({"output_ids": [4, 2]}, "expected 2 log-probabilities, one a token, got 3"),
        ({"output_ids": [4, 1, 1]}, "no stop token before the end"),
        ({"output_ids": [4, 2, 3]}, "an answer that ends with a stop token or at its longest"),
        ({"output_top_logprobs_shape": [2, 2]}, r"top log-probabilities \(3, 2\), got \(2, 2\)"),
        ({"output_top_logprobs_val_flat_b64": packed(LOGPROBS[:2])}, "of 6 values, got 4"),
        ({"output_top_logprobs_val_flat_b64": packed(-LOGPROBS)}, "log-probabilities <= 0"),
        ({"output_top_logprobs_val_flat_b64": packed(LOGPROBS * np.float32("nan"))}, "finite log-probabilities"),
        ({"output_top_logprobs_val_flat_b64": packed(LOGPROBS / 4)}, "add up to at most 1"),
        ({"output_top_logprobs_val_flat_b64_dtype": "float64"}, "as one of float32"),
        ({"output_top_logprobs_idx_flat_b64": packed(IDS + 9)}, r"expected token ids in \[0, 12\), got \[13\]"),
        ({"output_top_logprobs_idx_flat_b64": packed(IDS * 0)}, "different tokens"),
        ({"output_token_logprobs": [[0.5, 4, None]] * 3}, "log-probabilities <= 0"),
    ],
)
def test_a_reply_that_cannot_be_right_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(Failure, match=told):
        read(reply(**changes))


def nested(ids: np.ndarray[Any, Any]) -> list[Any]:
    return [[[logprob, id, None] for logprob, id in zip(*row, strict=True)] for row in zip(LOGPROBS, ids, strict=True)]


def test_nested_lists_as_a_router_has_them_made_are_read_as_well() -> None:
    plain = reply(output_top_logprobs=nested(IDS))
    del plain["meta_info"]["output_top_logprobs_shape"]
    found, wanted = read(plain), read(reply())
    np.testing.assert_array_equal(found.ids, wanted.ids)
    np.testing.assert_array_equal(found.logprobs, wanted.logprobs)
    plain["meta_info"]["output_top_logprobs"][1] = None
    with pytest.raises(Failure, match=r"top log-probabilities \(3, 2\), got 3 of"):
        read(plain)


def test_a_server_without_the_flat_form_is_told_by_its_version() -> None:
    old = reply()
    del old["meta_info"]["output_top_logprobs_shape"]
    with pytest.raises(Failure, match=r"SGLang 0\.5\.23 or newer"):
        read(old)


def test_what_is_no_reply_at_all_is_refused() -> None:
    with pytest.raises(Failure, match="expected a reply of SGLang's /generate, got"):
        answer_of({"error": "no"}, ASKED)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"output_token_logprobs": None}, "TypeError"),
        ({"output_ids": ["x"]}, "ValueError"),
        ({"output_top_logprobs_val_flat_b64": "abc"}, "Error: Incorrect padding"),
    ],
)
def test_a_reply_that_cannot_be_read_is_told_with_the_server_that_sent_it(changes: dict[str, Any], told: str) -> None:
    server, stored = Server("http://a:1"), "; nothing of this reply is stored"
    with pytest.raises(Failure, match=rf"^http://a:1: expected a reply of .*{told}.*{stored}"), reading(server):
        read(reply(**changes))
    with pytest.raises(Failure, match=rf"^http://a:1: expected 5 tokens of prompt, got 4{stored}"), reading(server):
        read(reply(prompt_tokens=4))


def test_answers_that_nobody_confirms_are_not_asked_for_without_end() -> None:
    asked = []

    class Unconfirmed(Job):
        async def _answer(self, prompt: Any) -> Any:
            asked.append(prompt)
            return Server("http://a:1"), None

        async def _confirm(self, server: Server) -> bool:
            return False

    async def ask() -> None:
        limits = {"api_key": "", "connections": 1, "request_seconds": 9.0, "outage_seconds": 9.0}
        job = Unconfirmed(
            cast(Any, SimpleNamespace(teacher=None)), Servers(["http://a:1"], **cast(Any, limits)), ends=float("inf")
        )
        with anyio.fail_after(60):
            await job.signal(np.arange(3, dtype=np.int32))

    with pytest.raises(Failure, match=r"http://a:1 answered 10 times, and did not say .*/model_info"):
        anyio.run(ask)
    assert len(asked) == 10


STATES = np.linspace(-3, 3, 15, dtype=np.float32).reshape(5, 3)


def hidden(dtype: str, values: np.ndarray[Any, Any], shape: list[int]) -> dict[str, Any]:
    return reply(hidden_states=[{"dtype": dtype, "shape": shape, "b64": packed(values)}])


def test_states_come_in_float32_exactly_in_bfloat16_rounded_and_as_lists() -> None:
    np.testing.assert_array_equal(states_of(hidden("float32", STATES, [5, 3]), ASKED, 3), STATES)
    np.testing.assert_array_equal(states_of(reply(hidden_states=[STATES.tolist(), [0, 0, 0]]), ASKED, 3), STATES)
    upper = (STATES.view(np.uint32) >> 16).astype(np.uint16)
    np.testing.assert_allclose(states_of(hidden("bfloat16", upper, [5, 3]), ASKED, 3), STATES, rtol=2**-7)


def test_states_of_fewer_tokens_than_were_sent_are_refused_with_the_cure() -> None:
    with pytest.raises(Failure, match=r"expected hidden states \(5, 3\), got \(4, 3\).*--disable-radix-cache"):
        states_of(hidden("float32", STATES[:4], [4, 3]), ASKED, 3)
    with pytest.raises(Failure, match="--enable-return-hidden-states"):
        states_of(reply(), ASKED, 3)
    with pytest.raises(Failure, match="finite hidden states"):
        states_of(hidden("float32", STATES * np.float32("nan"), [5, 3]), ASKED, 3)


ANSWER = np.array([4, 2, 1], np.int32)


def entry(values: np.ndarray[Any, Any], computed: int) -> dict[str, Any]:
    return {"dtype": "float32", "shape": list(values.shape), "b64": packed(values), "computed": computed}


def test_the_states_that_predict_an_answer_are_the_last_of_each_step_in_any_form() -> None:
    wanted = np.stack([STATES[4], STATES[0], STATES[1]])
    last_alone = [entry(STATES[4:], 5), entry(STATES[:1], 1), entry(STATES[1:2], 1)]
    started_again = [entry(STATES[4:], 5), entry(STATES[:1], 1), entry(STATES[1:2], 7)]
    whole_prompt = [entry(STATES, 5), STATES[0].tolist(), STATES[1].tolist()]
    for states in (last_alone, started_again, whole_prompt, [STATES.tolist(), *whole_prompt[1:]]):
        found = answer_states_of(reply(hidden_states=states), ANSWER, ASKED, 3)
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("states", "told"),
    [
        ([entry(STATES[4:], 4), entry(STATES[:1], 1), entry(STATES[:1], 1)], r"got \(4, 3\).*--disable-radix-cache"),
        ([entry(STATES[4:], 5), entry(STATES[:1], 1), entry(STATES[:1], 6)], r"expected hidden states \(7, 3\)"),
        ([entry(STATES[4:], 5), entry(STATES[:1], 1)], "of 3 steps, one a token, got 2"),
        ([entry(STATES[4:, :2], 5), *[entry(STATES[:1], 1)] * 2], "states of width 3"),
        ([entry(STATES[5:], 5), *[entry(STATES[:1], 1)] * 2], "states of width 3"),
        ([{**entry(STATES[4:], 5), "shape": [2, 3]}, *[entry(STATES[:1], 1)] * 2], "of 6 values, got 3"),
        ([entry(STATES[4:] * np.float32("nan"), 5), *[entry(STATES[:1], 1)] * 2], "finite hidden states"),
        ([], "--enable-return-hidden-states"),
    ],
)
def test_states_of_another_number_of_tokens_are_refused(states: list[Any], told: str) -> None:
    with pytest.raises(Failure, match=told):
        answer_states_of(reply(hidden_states=states), ANSWER, ASKED, 3)
