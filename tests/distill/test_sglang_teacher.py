"""A teacher on a real SGLang server, on the CPU: what it says, and what becomes of faults that are caused for real."""

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from deployments.sglang import server
from deployments.sglang.server import Options, Served, interpreter, serving
from distill.errors import Failure, InputError
from distill.models import load_model
from distill.prepare import prepare
from distill.prompts import encode, load_tokenizer
from distill.settings import StudentSettings, TeacherSettings
from distill.signals import SignalStore, obtain
from distill.teachers.local import LocalTeacher
from distill.teachers.protocol import HiddenSignal
from distill.teachers.sglang import SGLangTeacher

pytestmark = [pytest.mark.sglang, pytest.mark.integration]
KEY = "open sesame"
NEW, K = 12, 8


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, checkpoint_maker: Callable[..., Path]) -> Path:
    """Return a teacher with room for long prompts."""
    return checkpoint_maker(tmp_path_factory.mktemp("sglang") / "teacher", context=1024)


@pytest.fixture(scope="module")
def served(checkpoint: Path) -> Iterator[Served]:
    interpreter()  # an error here is told once, and by its own name
    with serving(Options(str(checkpoint), hidden_states="float32", api_key=KEY)) as server:
        yield server


def prompts_of(checkpoint: Path, count: int) -> list[NDArray[np.int32]]:
    words = ["The printer on the second floor", "I cannot log in since", "Please send me", "How do I set up the mail"]
    texts = [f"{words[at % 4]} {at} " + "does not print any more " * (at % 5) for at in range(count)]
    return encode(load_tokenizer(checkpoint), texts, 200).ids


def teacher_at(checkpoint: Path, urls: Sequence[str], **options: Any) -> SGLangTeacher:
    given = {"api_key": KEY, "top_k": K, "max_new_tokens": NEW, "outage_seconds": 20.0, **options}
    return SGLangTeacher(checkpoint, urls, **given)


def asked(teacher: Any, prompts: Sequence[NDArray[np.int32]]) -> dict[int, Any]:
    found = list(teacher.ask(prompts))
    assert sorted(row for row, _ in found) == list(range(len(prompts)))
    return dict(found)


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


@contextmanager
def proxy(url: str, breaks: Callable[[int], str]) -> Iterator[str]:
    """Forward connections to a server; `breaks` says of each by its number: "" or "reset" or "slow"."""
    host, port = url.removeprefix("http://").split(":")
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def pump(source: socket.socket, sink: socket.socket, fault: str) -> None:
        try:
            while data := source.recv(65536):
                if fault == "reset":  # RST instead of FIN
                    sink.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return
                sink.sendall(data)
        except OSError:
            pass
        finally:
            for each in (source, sink):
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)  # wakes the other direction
                each.close()

    def accept() -> None:
        number = 0
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            fault, number = breaks(number), number + 1
            try:
                server = socket.create_connection((host, int(port)))
            except OSError:
                client.close()
                continue
            for source, sink, what in ((client, server, ""), (server, client, fault)):
                threads.append(threading.Thread(target=pump, args=(source, sink, what), daemon=True))
                threads[-1].start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()


class TestFaults:
    def test_connections_that_are_reset_lose_no_row(self, served: Served, checkpoint: Path) -> None:
        prompts = prompts_of(checkpoint, 30)
        with proxy(served.url, lambda number: "reset" if number % 3 == 1 else "") as url:
            teacher = teacher_at(checkpoint, [url], concurrency=8)
            found = asked(teacher, prompts)
        assert teacher.spent.retries > 0
        whole = asked(teacher_at(checkpoint, [served.url]), prompts)
        assert all(found[row].answer.tolist() == whole[row].answer.tolist() for row in whole)

    def test_of_two_servers_one_that_is_dead_is_left_alone(
        self, served: Served, checkpoint: Path, free_port: Callable[[], int]
    ) -> None:
        prompts = prompts_of(checkpoint, 20)
        teacher = teacher_at(checkpoint, [f"http://127.0.0.1:{free_port()}", served.url])
        assert len(asked(teacher, prompts)) == len(prompts)

    def test_a_request_that_no_server_finishes_in_time_ends_the_job_with_what_to_do(
        self, served: Served, checkpoint: Path
    ) -> None:
        teacher = teacher_at(checkpoint, [served.url], request_seconds=0.01)
        with pytest.raises((Failure, InputError), match=r"request_seconds|no teacher server answers"):
            list(teacher.ask(prompts_of(checkpoint, 4)))
        assert len(asked(teacher_at(checkpoint, [served.url]), prompts_of(checkpoint, 1))) == 1

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

    def test_a_server_that_is_killed_and_started_again_loses_no_row(
        self, checkpoint: Path, tmp_path: Path, free_port: Callable[[], int]
    ) -> None:
        port, prompts, store = free_port(), prompts_of(checkpoint, 120), SignalStore(tmp_path / "signals")
        options = Options(str(checkpoint), port=port)
        first, done, failed = serving(options), threading.Event(), list[BaseException]()
        running = first.__enter__()

        def restart() -> None:  # a server ends with the thread that started it
            try:
                running.process.kill()
                first.__exit__(None, None, None)
                with serving(options):
                    done.wait()
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=restart)

        def kill(answered: int, whole: int) -> None:
            if answered == 15:
                thread.start()

        teacher = teacher_at(checkpoint, [running.url], concurrency=4, outage_seconds=300.0)
        try:
            found = obtain(store, teacher, prompts, progress=kill, flush_rows=5)
            assert (found.bought_rows, len(store)) == (len(prompts), len(prompts))
            assert teacher.spent.retries > 0
            assert not failed
        finally:
            done.set()
            thread.join()


class TestLaunchedOtherwise:
    def test_states_that_a_radix_cache_swallows_are_missed(
        self, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cached = [word for word in server.argv(Options(str(checkpoint)), 0) if word != "--disable-radix-cache"]
        monkeypatch.setattr(server, "argv", lambda _, port: [*cached, "--port", str(port)])
        with serving(Options(str(checkpoint))) as s:
            prompt = np.arange(10, 200, dtype=np.int32)
            teacher = teacher_at(checkpoint, [s.url], signals_format="hidden:bf16")
            with pytest.raises(Failure, match=r"left rows out; start it with --disable-radix-cache"):
                list(teacher.ask([prompt]))  # its answer is asked for first, and is in the cache then
            assert httpx.get(f"{s.url}/health").is_success


def update(served: Served, checkpoint: Path) -> None:
    response = httpx.post(
        f"{served.url}/update_weights_from_disk",
        json={"model_path": str(checkpoint)},
        headers={"Authorization": f"Bearer {KEY}"},
        timeout=60,
    )
    assert response.is_success, response.text
