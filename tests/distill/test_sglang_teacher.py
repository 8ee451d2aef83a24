"""A teacher on a real SGLang server, on the CPU: what it says, and what becomes of faults that are caused for real."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deployments.sglang import server
from deployments.sglang.server import Options, Served, serving
from distill.buying import obtain
from distill.errors import Failure, InputError
from distill.models import load_model
from distill.prepare import prepare
from distill.settings import StudentSettings
from distill.signals import SignalStore
from distill.teacher_settings import TeacherSettings
from distill.teachers.local import LocalTeacher
from distill.teachers.protocol import HiddenSignal
from tests.distill.sglang_servers import KEY, NEW, K, alive, asked, prompts_of, proxy, teacher_at, update

pytestmark = [pytest.mark.sglang, pytest.mark.integration]


@pytest.fixture(scope="module")
def checkpoint(teacher_checkpoint: Path) -> Path:
    return teacher_checkpoint


@pytest.fixture(scope="module")
def served(teacher_server: Served) -> Served:
    return teacher_server


class TestWhatItSays:
    def test_answers_and_their_top_k_are_those_of_the_model_in_process(self, served: Served, checkpoint: Path) -> None:
        prompts = prompts_of(checkpoint, 40)
        theirs = asked(teacher_at(checkpoint, [served.url]), prompts)
        own = asked(LocalTeacher(checkpoint, top_k=K, max_new_tokens=NEW), prompts)
        for row, wanted in own.items():
            assert theirs[row].answer.tolist() == wanted.answer.tolist()
            assert (theirs[row].ids[:, 0] == wanted.ids[:, 0]).all()
            np.testing.assert_allclose(theirs[row].tail, wanted.tail, atol=1e-5)
            # Of both a float16 is kept: one rounding apart.
            np.testing.assert_allclose(
                theirs[row].logprobs.astype(float), wanted.logprobs.astype(float), rtol=2**-10, atol=1e-5
            )

    def test_hidden_states_are_the_models_to_1e_5_also_of_700_tokens_beside_short_ones(
        self, served: Served, checkpoint: Path
    ) -> None:
        rng = np.random.default_rng(0)
        prompts = [rng.integers(4, 200, length, dtype=np.int32) for length in (700, 3, 90, 1, 333)]
        found = asked(teacher_at(checkpoint, [served.url], signals_format="hidden:bf16"), prompts)
        model = load_model(checkpoint, "cpu")
        for row, signal in found.items():
            assert isinstance(signal, HiddenSignal)
            whole = np.concatenate([prompts[row], signal.answer])
            with torch.inference_mode():
                states = model.base_model(torch.from_numpy(whole.astype(np.int64))[None]).last_hidden_state[0].numpy()
            wanted = states[len(prompts[row]) - 1 : -1]
            assert np.abs(signal.states - wanted).max() <= 1e-5 * np.abs(wanted).max()

    def test_the_same_prompt_has_the_same_key_whoever_is_asked(self, served: Served, checkpoint: Path) -> None:
        remote, local = (
            teacher_at(checkpoint, [served.url]),
            LocalTeacher(checkpoint, top_k=K, max_new_tokens=NEW),
        )
        assert (remote.digest, remote.format, remote.sampling) == (local.digest, local.format, local.sampling)

    def test_a_student_with_another_tokenizer_is_taught_the_same_by_server_and_process(
        self, served: Served, checkpoint: Path, checkpoint_maker: Callable[..., Path], tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setenv("REDISTILL_TEACHER_API_KEY", KEY)
        sentences = ["quantum lattices and graph neural networks", "fast approximate matrix sketching"]
        base = checkpoint_maker(tmp_path / "base", seed=1, sentences=sentences)
        found = []
        for backend in ("sglang", "local"):
            settings = {"backend": backend, "urls": [served.url], "cross_tokenizer": True, "min_aligned": 0.0}
            request = prepare(
                ["The printer on the second floor", "I cannot log in since", "x"],
                student=StudentSettings(base=str(base), max_prompt_tokens=100, max_new_tokens=NEW),
                teacher=TeacherSettings.model_validate({"model": str(checkpoint), "top_k": K, **settings}),
                output=tmp_path / backend,
            )
            found.append(Path(request.mixture).read_bytes())
        assert found[0] == found[1]


class TestBeforeAnythingIsSent:
    @pytest.mark.parametrize(
        ("options", "prompt", "told"),
        [
            ({"top_k": 9999}, [5], "top_k = 9999"),
            ({}, [99999], "belongs to another model"),
            ({}, [-1], "belongs to another model"),
            ({}, [], "have no token"),
            ({}, [5] * 1020, "exceed the context"),
        ],
    )
    def test_what_would_kill_or_be_cut_is_refused_and_the_server_lives(
        self, options: dict[str, Any], prompt: list[int], told: str, served: Served, checkpoint: Path
    ) -> None:
        teacher = teacher_at(checkpoint, [served.url], **options)
        with pytest.raises(InputError, match=told):
            list(teacher.ask([np.array(prompt, np.int32)]))
        assert len(asked(teacher_at(checkpoint, [served.url]), prompts_of(checkpoint, 1))) == 1

    def test_a_wrong_key_is_told_as_such(self, served: Served, checkpoint: Path) -> None:
        with pytest.raises(InputError, match="another API key") as raised:
            list(teacher_at(checkpoint, [served.url], api_key="wrong").ask(prompts_of(checkpoint, 1)))
        assert "wrong" not in str(raised.value).replace("another", "")
        assert alive(served)

    def test_a_server_of_another_checkpoint_is_not_asked(
        self, served: Served, tmp_path: Path, checkpoint_maker: Callable[..., Path]
    ) -> None:
        other = checkpoint_maker(tmp_path / "other", seed=5)
        with pytest.raises(InputError, match="start the server with that checkpoint"):
            list(teacher_at(other, [served.url]).ask(prompts_of(other, 1)))

    def test_an_address_where_nobody_listens_is_told_at_once(
        self, checkpoint: Path, free_port: Callable[[], int]
    ) -> None:
        began = time.monotonic()
        with pytest.raises(InputError, match="no teacher server answers"):
            list(teacher_at(checkpoint, [f"http://127.0.0.1:{free_port()}"]).ask(prompts_of(checkpoint, 1)))
        assert time.monotonic() - began < 15

    def test_the_key_is_neither_in_the_log_nor_on_the_command_line(self, served: Served, checkpoint: Path) -> None:
        import psutil

        assert KEY not in served.log.read_text("utf-8", "replace")
        parent = psutil.Process(served.process.pid)
        assert not any(KEY in " ".join(each.cmdline()) for each in [parent, *parent.children(recursive=True)])


class TestFaults:
    def test_connections_that_are_reset_lose_no_row(self, served: Served, checkpoint: Path) -> None:
        prompts = prompts_of(checkpoint, 30)
        with proxy(served, lambda number: "reset" if number % 3 == 1 else "") as reset:
            teacher = teacher_at(checkpoint, [reset.url], concurrency=8)
            found = asked(teacher, prompts)
        assert teacher.spent.retries > 0
        whole = asked(teacher_at(checkpoint, [served.url]), prompts)
        assert all(found[row].answer.tolist() == whole[row].answer.tolist() for row in whole)

    def test_a_job_has_its_limit_of_time(self, served: Served, checkpoint: Path) -> None:
        with pytest.raises(Failure, match="job_seconds"):
            list(teacher_at(checkpoint, [served.url], job_seconds=0.05).ask(prompts_of(checkpoint, 50)))

    def test_weights_that_change_meanwhile_end_the_job_and_nothing_of_theirs_is_stored(
        self, served: Served, checkpoint: Path, tmp_path: Path, checkpoint_maker: Callable[..., Path]
    ) -> None:
        other = checkpoint_maker(tmp_path / "other", seed=7, context=1024)
        prompts, store = prompts_of(checkpoint, 200), SignalStore(tmp_path / "signals")

        def change(done: int, whole: int) -> None:
            if done == 20:
                update(served, other)

        teacher = teacher_at(checkpoint, [served.url], concurrency=4)
        try:
            with pytest.raises(Failure, match="expected the weights"):
                obtain(store, teacher, prompts, progress=change, flush_rows=5)
        finally:
            update(served, checkpoint)
        own = LocalTeacher(checkpoint, top_k=K, max_new_tokens=NEW)
        assert 20 <= len(store) < len(prompts)
        before = len(store)
        right = SignalStore(tmp_path / "right")
        keys = obtain(right, own, prompts).keys
        for key in keys[store.contains(keys)]:
            assert store.get(key.tobytes()).answer.tolist() == right.get(key.tobytes()).answer.tolist()
        found = obtain(store, teacher, prompts)  # the rest, and nothing twice
        assert (found.reused_rows, found.bought_rows) == (before, len(prompts) - before)


class TestLaunchedOtherwise:
    def test_states_that_a_radix_cache_swallows_are_missed(
        self, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cached = [word for word in server.argv(Options(str(checkpoint)), 0) if word != "--disable-radix-cache"]
        monkeypatch.setattr(server, "argv", lambda _, port: [*cached, "--port", str(port)])
        with serving(Options(str(checkpoint))) as s:
            prompt = np.arange(10, 200, dtype=np.int32)
            teacher = teacher_at(checkpoint, [s.url], signals_format="hidden:bf16")
            assert len(list(teacher.ask([prompt]))) == 1  # nothing is in the cache yet
            with pytest.raises(Failure, match=r"left rows out; start it with --disable-radix-cache"):
                list(teacher.ask([prompt]))
            assert alive(s)
