"""A teacher that gives answers and nothing else: what is sent, what becomes of each reply, what it cannot teach."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distill.buying import obtain
from distill.disagreement import disagreement, unknown
from distill.errors import Failure, InputError
from distill.generation import Sampling
from distill.mixture_settings import AuditSettings, MixtureSettings
from distill.prepare import prepare
from distill.prompts import Encoded, encode, load_tokenizer
from distill.settings import StudentSettings, TrainingSettings
from distill.signals import SignalStore, withheld
from distill.store import upkeep
from distill.store.places import place_of
from distill.teacher_settings import TeacherSettings
from distill.teachers.openai import OpenAITeacher
from distill.teachers.protocol import CUT, EMPTY, FILTERED, REFUSED, WHOLE, AnswerSignal
from distill.teachers.spoken import spoken

Endpoint = Callable[..., str]
PROMPTS = ["The printer does not print", "log in", "How do I set up the mail program?", "x", "invoice", "log in"]
NEW = 8


def said(text: str | None, finished: str = "stop", **message: Any) -> tuple[int, dict[str, str], Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finished}
    usage = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}
    return 200, {}, {"model": "big-2026", "choices": [choice], "usage": usage}


def teacher_at(url: str, checkpoint: Path, prompts: list[str] = PROMPTS, **options: Any) -> tuple[Any, Encoded]:
    tokenizer = load_tokenizer(checkpoint)
    encoded = encode(tokenizer, prompts, options.pop("max_prompt_tokens", 200))
    given = {"max_new_tokens": NEW, "outage_seconds": 20.0, **options}
    return OpenAITeacher("big", [url], spoken=spoken(tokenizer, prompts, encoded), **given), encoded


def asked(teacher: Any, encoded: Encoded) -> list[AnswerSignal]:
    found = dict(teacher.ask(encoded.ids))
    assert sorted(found) == list(range(len(encoded.ids)))
    return [found[row] for row in range(len(found))]


class TestWhatIsAsked:
    def test_the_users_text_goes_there_and_the_answer_comes_back_in_the_students_tokens(
        self, endpoint: Endpoint, tiny_checkpoint: Path
    ) -> None:
        seen: list[dict[str, Any]] = []

        def reply(posted: dict[str, Any]) -> Any:
            seen.append(posted)
            return said(f"re {posted['messages'][0]['content'][:3]}")

        teacher, encoded = teacher_at(endpoint(reply), tiny_checkpoint, max_new_tokens=20)
        tokenizer = load_tokenizer(tiny_checkpoint)
        for text, signal in zip(PROMPTS, asked(teacher, encoded), strict=True):
            assert signal.answer[-1] == tokenizer.eos_token_id
            assert tokenizer.decode(signal.answer[:-1]) == f"re {text[:3]}"
            assert set(signal.ending.tolist()) == {WHOLE}
        assert sorted(posted["messages"][0]["content"] for posted in seen) == sorted(PROMPTS)
        posted = {key: value for key, value in seen[0].items() if key != "messages"}
        assert posted == {
            "path": "/v1/chat/completions", "model": "big", "max_tokens": 20, "temperature": 0.0,
        }  # fmt: skip

    def test_completions_send_the_text_alone_and_a_draw_its_seed(
        self, endpoint: Endpoint, tiny_checkpoint: Path
    ) -> None:
        seen: list[dict[str, Any]] = []

        def reply(posted: dict[str, Any]) -> Any:
            seen.append(posted)
            return 200, {}, {"model": "m", "choices": [{"text": "billing", "finish_reason": "stop"}]}

        options = {"endpoint": "completions", "drawn": Sampling(0.7, 5)}
        teacher, encoded = teacher_at(endpoint(reply), tiny_checkpoint, ["log in"], **options)
        (signal,) = asked(teacher, encoded)
        assert load_tokenizer(tiny_checkpoint).decode(signal.answer, skip_special_tokens=True) == "billing"
        assert seen == [{
            "path": "/v1/completions", "model": "big", "prompt": "log in", "max_tokens": NEW,
            "temperature": 0.7, "top_p": 0.999999, "seed": 5,
        }]  # fmt: skip
        assert teacher.sampling == "openai:completions:drawn:temperature=0.7:seed=5:max_new_tokens=8"
        assert teacher.spent.unbilled == 1

    def test_of_a_prompt_that_is_cut_the_endpoint_reads_what_the_student_reads(
        self, endpoint: Endpoint, tiny_checkpoint: Path
    ) -> None:
        seen: list[str] = []

        def reply(posted: dict[str, Any]) -> Any:
            seen.append(posted["messages"][0]["content"])
            return said("billing high")

        prompts = ["one two three " * 20 + "the printer does not print", "log in"]
        teacher, encoded = teacher_at(endpoint(reply), tiny_checkpoint, prompts, max_prompt_tokens=16)
        assert encoded.truncated == 1
        asked(teacher, encoded)
        cut = max(seen, key=len)
        tokenizer = load_tokenizer(tiny_checkpoint)
        assert prompts[0].endswith(cut)
        assert 0 < len(cut) < len(prompts[0])
        assert encode(tokenizer, [cut], 16).ids[0].tolist() == encoded.ids[0].tolist()

    def test_name_revision_and_the_students_tokenizer_are_its_identity_and_the_address_is_not(
        self, tiny_checkpoint: Path, other_checkpoint: Path
    ) -> None:
        one, _ = teacher_at("http://a", tiny_checkpoint)
        assert one.digest == teacher_at("http://b", tiny_checkpoint)[0].digest
        assert one.digest != teacher_at("http://a", tiny_checkpoint, revision="2")[0].digest
        assert one.digest != teacher_at("http://a", other_checkpoint)[0].digest
        assert one.sampling == "openai:chat:greedy:max_new_tokens=8"


class TestWhatComesBack:
    @pytest.mark.parametrize(
        ("reply", "ending"),
        [
            (said("billing", "content_filter"), FILTERED),
            (said(None, refusal="I will not"), REFUSED),
            (said(" \n"), EMPTY),
            (said(None, "length"), EMPTY),
            ((400, {}, {"error": {"code": "content_filter", "message": "no"}}), FILTERED),
        ],
    )
    def test_an_answer_that_is_none_is_kept_as_such_and_known_again(
        self, reply: Any, ending: int, endpoint: Endpoint, tiny_checkpoint: Path, tmp_path: Path
    ) -> None:
        url = endpoint(lambda posted: reply if posted["messages"][0]["content"] == "x" else said("billing high"))
        teacher, encoded = teacher_at(url, tiny_checkpoint)
        store = SignalStore(tmp_path)
        found = obtain(store, teacher, encoded.ids)
        assert withheld(store, found.keys).tolist() == [text == "x" for text in PROMPTS]
        signal = store.get(found.keys[3].tobytes())
        assert isinstance(signal, AnswerSignal)
        assert signal.ending.tolist() == [ending]
        assert obtain(store, teacher, encoded.ids).bought_rows == 0

    def test_an_answer_that_was_cut_has_no_end_and_one_longer_than_the_student_can_say_is_cut(
        self, endpoint: Endpoint, tiny_checkpoint: Path
    ) -> None:
        words = "The printer on the second floor does not print any more and more and more"
        url = endpoint(
            lambda posted: said("billing", "length") if posted["messages"][0]["content"] == "x" else said(words)
        )
        teacher, encoded = teacher_at(url, tiny_checkpoint, ["x", "invoice"])
        cut, long = asked(teacher, encoded)
        tokenizer = load_tokenizer(tiny_checkpoint)
        assert tokenizer.decode(cut.answer) == "billing"
        assert len(long.answer) == NEW
        assert words.startswith(tokenizer.decode(long.answer))
        assert set(cut.ending.tolist()) == set(long.ending.tolist()) == {CUT}

    def test_text_that_looks_like_the_end_is_text(self, endpoint: Endpoint, tiny_checkpoint: Path) -> None:
        teacher, encoded = teacher_at(endpoint(lambda _: said("a<eos>b")), tiny_checkpoint, ["x"], max_new_tokens=20)
        (signal,) = asked(teacher, encoded)
        tokenizer = load_tokenizer(tiny_checkpoint)
        assert (signal.answer == tokenizer.eos_token_id).tolist() == [False] * (len(signal.answer) - 1) + [True]
        assert tokenizer.decode(signal.answer[:-1]) == "a<eos>b"

    @pytest.mark.parametrize(
        ("reply", "told"),
        [
            (said("x", "tool_calls"), "got 'tool_calls'"),
            ((200, {}, {"choices": []}), "expected one choice"),
            ((200, {}, ["no"]), "expected one choice"),
            (
                (200, {}, {"choices": [{"message": {"content": 3}, "finish_reason": "stop"}]}),
                "expected a text, got int",
            ),
        ],
    )
    def test_what_is_no_reply_ends_the_job_with_what_came_and_the_rest_is_stored(
        self, reply: Any, told: str, endpoint: Endpoint, tiny_checkpoint: Path, tmp_path: Path
    ) -> None:
        url = endpoint(lambda posted: reply if posted["messages"][0]["content"] == "x" else said("billing high"))
        teacher, encoded = teacher_at(url, tiny_checkpoint, concurrency=1)
        with pytest.raises(Failure, match=told):
            obtain(SignalStore(tmp_path), teacher, encoded.ids)
        assert len(SignalStore(tmp_path)) == 4  # the shortest prompt is the last to be asked

    def test_a_prompt_that_is_refused_costs_no_other_that_is_under_way(
        self, endpoint: Endpoint, tiny_checkpoint: Path, tmp_path: Path
    ) -> None:
        refused, busy = threading.Event(), set[str]()

        def reply(posted: dict[str, Any]) -> Any:
            if (text := posted["messages"][0]["content"]) == max(PROMPTS, key=len):
                refused.set()
                return 400, {}, {"error": {"message": "too long"}}
            assert refused.wait(60)
            if text in busy:
                return said("billing high")
            busy.add(text)  # long enough for the refusal to have arrived
            return 503, {"Retry-After": "1"}, {}

        teacher, encoded = teacher_at(endpoint(reply), tiny_checkpoint)
        with pytest.raises(InputError, match="too long"):
            obtain(SignalStore(tmp_path), teacher, encoded.ids)
        assert len(SignalStore(tmp_path)) == len(set(PROMPTS)) - 1

    def test_an_endpoint_that_does_not_keep_to_the_limit_is_told_by_what_name_it_was_sent(
        self, endpoint: Endpoint, tiny_checkpoint: Path
    ) -> None:
        teacher, encoded = teacher_at(endpoint(lambda _: said("b")), tiny_checkpoint, ["x"], max_new_tokens=2)
        with pytest.raises(Failure, match=r"at most 2 tokens, got 3: the endpoint does not know max_tokens"):
            asked(teacher, encoded)
        options = {"max_new_tokens": 3, "limit_name": "max_completion_tokens"}
        url = endpoint(lambda posted: said("b") if posted["max_completion_tokens"] == 3 else (400, {}, {}))
        teacher, encoded = teacher_at(url, tiny_checkpoint, ["x"], **options)
        assert len(asked(teacher, encoded)) == 1

    def test_another_model_behind_the_name_ends_the_job(self, endpoint: Endpoint, tiny_checkpoint: Path) -> None:
        def reply(posted: dict[str, Any]) -> Any:
            status, headers, whole = said("billing")
            return status, headers, {**whole, "model": "new" if posted["messages"][0]["content"] == "x" else "old"}

        teacher, encoded = teacher_at(endpoint(reply), tiny_checkpoint, concurrency=1)
        with pytest.raises(Failure, match=r"an answer of 'old' as before, got one of 'new'"):
            asked(teacher, encoded)

    def test_the_endpoints_own_count_is_summed_and_replies_without_one_are_counted(
        self, endpoint: Endpoint, tiny_checkpoint: Path
    ) -> None:
        def reply(posted: dict[str, Any]) -> Any:
            status, headers, whole = said("billing")
            if posted["messages"][0]["content"] == "x":
                del whole["usage"]
            return status, headers, whole

        teacher, encoded = teacher_at(endpoint(reply), tiny_checkpoint)
        asked(teacher, encoded)
        spent = teacher.spent
        assert (spent.billed_prompt_tokens, spent.billed_answer_tokens, spent.unbilled) == (55, 15, 1)
        assert (spent.requests, spent.retries, sum(spent.latencies)) == (6, 0, 6)


class TestBusyServers:
    @pytest.mark.parametrize("status", [429, 503])
    @pytest.mark.parametrize("as_date", [False, True])
    def test_one_that_says_how_long_it_wants_to_rest_is_left_alone_so_long(
        self, status: int, as_date: bool, endpoint: Endpoint, tiny_checkpoint: Path
    ) -> None:
        times, lock = list[float](), threading.Lock()

        def reply(posted: dict[str, Any]) -> Any:
            with lock:
                times.append(time.time())
                if len(times) > 1:
                    return said("billing")
            until = datetime.fromtimestamp(times[0], UTC) + timedelta(seconds=2)  # a date has no fractions
            return status, {"Retry-After": format_datetime(until, usegmt=True) if as_date else "1"}, {}

        teacher, encoded = teacher_at(endpoint(reply), tiny_checkpoint, ["x", "invoice"], concurrency=1)
        asked(teacher, encoded)
        assert times[1] - times[0] >= 0.95
        assert (teacher.spent.requests, teacher.spent.retries, teacher.spent.rests) == (3, 1, 1)
        assert teacher.spent.waited_seconds >= 0.9

    def test_what_it_answers_meanwhile_of_what_was_under_way_does_not_cut_its_rest_short(
        self, endpoint: Endpoint, tiny_checkpoint: Path
    ) -> None:
        refused, under_way, lock = threading.Event(), threading.Event(), threading.Lock()
        times = list[float]()  # of requests from the refused one on

        def reply(posted: dict[str, Any]) -> Any:
            if posted["messages"][0]["content"] == "the printer":  # longest: asked first
                under_way.set()
                assert refused.wait(60)
                return said("billing")
            assert under_way.wait(60)
            with lock:
                times.append(time.monotonic())
            if len(times) == 1:
                refused.set()
                return 429, {"Retry-After": "2"}, {}
            return said("billing")

        teacher, encoded = teacher_at(endpoint(reply), tiny_checkpoint, ["the printer", "x", "log in"], concurrency=2)
        asked(teacher, encoded)
        assert len(times) == 3
        assert times[1] - times[0] >= 1.95

    def test_a_proxy_with_nobody_behind_it_is_an_outage_and_no_fault_of_the_last_request(
        self, endpoint: Endpoint, tiny_checkpoint: Path
    ) -> None:
        asked_for = list[float]()

        def reply(posted: dict[str, Any]) -> Any:
            asked_for.append(time.monotonic())
            if len(asked_for) <= 6:
                return 503, {}, {"error": {"message": "no healthy upstream"}}
            return said("billing")

        teacher, encoded = teacher_at(endpoint(reply), tiny_checkpoint, ["x"], outage_seconds=60.0)
        assert len(asked(teacher, encoded)) == 1
        assert teacher.spent.retries == 6

    def test_a_request_that_fails_while_others_are_answered_is_not_sent_for_ever(
        self, endpoint: Endpoint, tiny_checkpoint: Path
    ) -> None:
        refused = threading.Event()

        def reply(posted: dict[str, Any]) -> Any:
            if posted["messages"][0]["content"] == "x":
                refused.set()
                return 503, {}, {}
            refused.wait(60)
            return said("billing")

        others = [f"the printer {number}" for number in range(4)]
        teacher, encoded = teacher_at(endpoint(reply), tiny_checkpoint, ["x", *others], concurrency=5)
        with pytest.raises(Failure, match=r"taken 5 times and never answered, last: .*503"):
            asked(teacher, encoded)

    def test_one_that_wants_to_rest_longer_than_an_outage_may_be_ends_the_job_at_once(
        self, endpoint: Endpoint, tiny_checkpoint: Path
    ) -> None:
        url = endpoint(lambda _: (429, {"Retry-After": "86400"}, {"error": {"message": "quota"}}))
        teacher, encoded = teacher_at(url, tiny_checkpoint)
        began = time.monotonic()
        with pytest.raises(Failure, match=r"left alone for another 86\d\d\d s, .*HTTP 429 .*quota.* ask again then"):
            asked(teacher, encoded)
        assert time.monotonic() - began < 10

    def test_one_on_this_machine_is_asked_past_a_proxy_of_the_environment(
        self, endpoint: Endpoint, tiny_checkpoint: Path, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        teacher, encoded = teacher_at(endpoint(lambda _: said("billing")), tiny_checkpoint)
        assert len(asked(teacher, encoded)) == len(PROMPTS)

    def test_the_other_of_two_is_asked_meanwhile(self, endpoint: Endpoint, tiny_checkpoint: Path) -> None:
        busy = endpoint(lambda _: (429, {"Retry-After": "3600"}, {}))
        teacher, encoded = teacher_at(busy, tiny_checkpoint)
        teacher.urls = [busy, endpoint(lambda _: said("billing"))]
        assert len(asked(teacher, encoded)) == len(PROMPTS)


class TestBeforeAnythingIsPaid:
    def test_a_name_that_the_endpoint_does_not_know_is_told_with_those_that_it_does(
        self, endpoint: Endpoint, tiny_checkpoint: Path
    ) -> None:
        def reply(_: dict[str, Any]) -> Any:
            raise AssertionError("it was asked")

        teacher, encoded = teacher_at(endpoint(reply, models=["small", "huge"]), tiny_checkpoint)
        with pytest.raises(InputError, match=r"'big' is none of what .* serves: small, huge"):
            asked(teacher, encoded)

    def test_an_endpoint_that_lists_no_models_is_believed(self, endpoint: Endpoint, tiny_checkpoint: Path) -> None:
        teacher, encoded = teacher_at(endpoint(lambda _: said("billing"), models=[]), tiny_checkpoint)
        assert len(asked(teacher, encoded)) == len(PROMPTS)

    def test_a_key_is_shown_and_a_wrong_one_is_told_without_it(self, endpoint: Endpoint, tiny_checkpoint: Path) -> None:
        url = endpoint(lambda _: said("billing"), key="open sesame")
        teacher, encoded = teacher_at(url, tiny_checkpoint, api_key="open sesame")
        assert len(asked(teacher, encoded)) == len(PROMPTS)
        teacher, encoded = teacher_at(url, tiny_checkpoint, api_key="abracadabra")
        with pytest.raises(InputError, match="wants another API key") as raised:
            asked(teacher, encoded)
        assert "abracadabra" not in str(raised.value)

    @pytest.mark.parametrize(
        ("url", "told"),
        [
            ("http://x/v1", "ends in /v1"),
            *((url, "is no http") for url in ("x:80", "", "http://", "http://x:port", "http://x:99999", "http://[::1")),
        ],
    )
    def test_an_address_that_cannot_be_is_refused(self, url: str, told: str, tiny_checkpoint: Path) -> None:
        with pytest.raises(InputError, match=told):
            teacher_at(url, tiny_checkpoint)

    def test_settings_say_at_once_all_that_such_a_teacher_cannot_give(self) -> None:
        teacher = TeacherSettings(
            backend="openai", served_model="big", urls=("http://x",), signals_format="hidden:bf16"
        )
        training = TrainingSettings(hidden_weight=1.0, attention_weight=1.0, live_teacher=True, temperature=2.0)
        wrong = disagreement(teacher, training)
        assert wrong is not None
        expected = {"divergence", "live_teacher", "hidden_weight", "attention_weight", "temperature"}
        assert set(wrong[1]) == {
            "teacher.backend",
            "teacher.signals_format",
            *(f"training.{name}" for name in expected),
        }
        assert "says nothing of how likely they are" in wrong[0]
        assert "training.divergence to none" in wrong[0]
        assert "training.cross_entropy_weight = 1" in wrong[0]
        right = TrainingSettings(divergence="none")
        plain = teacher.model_copy(update={"signals_format": ""})
        assert disagreement(plain, right) is None
        old = plain.model_copy(update={"endpoint": "completions", "limit_name": "max_completion_tokens"})
        assert "knows max_tokens alone" in str(disagreement(old, right))
        nobody = disagreement(TeacherSettings(backend="openai"), right)
        assert nobody is not None
        assert nobody[1] == ("teacher.backend", "teacher.served_model", "teacher.urls")

    def test_mixture_and_audit_are_told_that_certainty_is_not_known(self) -> None:
        teacher = TeacherSettings(backend="openai", served_model="big", urls=("http://x",))
        wrong = unknown(teacher, MixtureSettings(), AuditSettings(min_logprob=-1.0))
        assert wrong is not None
        assert wrong[1] == ("teacher.backend", "mixture.error_share", "audit.min_logprob")
        assert "to 0" in wrong[0]
        assert unknown(teacher, MixtureSettings(error_share=0), AuditSettings(samples=3)) is None
        assert unknown(TeacherSettings(), MixtureSettings(), AuditSettings(min_logprob=-1.0)) is None

    def test_without_divergence_and_cross_entropy_nothing_would_be_learned(self) -> None:
        with pytest.raises(ValueError, match="set cross_entropy_weight above 0"):
            TrainingSettings(divergence="none", cross_entropy_weight=0)


def test_answers_alone_are_compacted_and_counted_as_what_they_are(
    endpoint: Endpoint, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    teacher, encoded = teacher_at(endpoint(lambda p: said(p["messages"][0]["content"][:5])), tiny_checkpoint)
    keys = obtain(SignalStore(tmp_path), teacher, encoded.ids, flush_rows=2).keys
    before = [store_answer(tmp_path, key) for key in keys]
    assert upkeep.compact(place_of(tmp_path), lambda *_: None)["shards_after"] == 1
    assert [store_answer(tmp_path, key) for key in keys] == before
    found = upkeep.stats(place_of(tmp_path))["formats"]
    assert list(found) == ["answer"]
    assert list(found["answer"]["tokens_kept_as"]) == ["answer"]
    assert found["answer"]["bytes_per_token"] < 30  # 5, and alignment


def store_answer(folder: Path, key: Any) -> tuple[list[int], list[int]]:
    signal = SignalStore(folder).get(key.tobytes())
    assert isinstance(signal, AnswerSignal)
    return signal.answer.tolist(), signal.ending.tolist()


def test_an_ending_that_is_none_is_not_stored(tmp_path: Path) -> None:
    wrong = AnswerSignal(np.ones(2, np.int32), np.full(2, 9, np.uint8))
    with pytest.raises(Failure, match="an ending below 5, got 9"):
        SignalStore(tmp_path).put([(b"k" * 32, 1, wrong)])


@pytest.mark.slow
def test_a_student_learns_the_answers_by_cross_entropy_alone(
    endpoint: Endpoint, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    from distill.scoring import score
    from distill.trainer import train

    def reply(posted: dict[str, Any]) -> Any:
        text = posted["messages"][0]["content"]
        return said("", "content_filter") if text.endswith("13") else said(answer_to(text))

    def answer_to(text: str) -> str:
        return "billing high" if "invoice" in text else "technical low"

    prompts = [f"{'the invoice' if n % 2 else 'my printer'} number {n}" for n in range(48)]
    lines: list[str] = []
    training = TrainingSettings(
        divergence="none", cross_entropy_weight=1.0, epochs=12, learning_rate=1e-2, warmup_steps=2,
        tokens_per_step=400, device="cpu",
    )  # fmt: skip
    request = prepare(
        prompts,
        student=StudentSettings(base=str(tiny_checkpoint), max_new_tokens=12),
        teacher=TeacherSettings(backend="openai", served_model="big", urls=(endpoint(reply),)),
        training=training,
        output=tmp_path / "distilled",
        on_line=lines.append,
    )
    assert any("1 of 48 answers were filtered, refused or empty: they are not learned" in line for line in lines)
    assert request.teacher == ""
    torch.manual_seed(0)
    train(request)
    unseen = [f"{'the invoice' if n % 2 else 'my printer'} number {n}" for n in range(50, 70)]
    found = score(tmp_path / "distilled" / "student", unseen, max_prompt_tokens=200, max_new_tokens=12).responses
    assert [answer_to(text) for text in unseen] == found
    with pytest.raises(InputError, match=r"set training\.divergence to none"):
        prepare(
            prompts,
            student=StudentSettings(base=str(tiny_checkpoint)),
            teacher=TeacherSettings(backend="openai", served_model="big", urls=("http://127.0.0.1:9",)),
            output=tmp_path / "other",
        )
