"""Scores, and a student's answers, by a real SGLang server: token ids alone, and from the weights that are meant."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from deployments.sglang.server import Options, Served, interpreter, serving
from distill.buying import fetch
from distill.errors import Failure, InputError
from distill.generation import Sampling
from distill.models import load_model
from distill.prompts import encode, load_tokenizer
from distill.rounds import answers
from distill.rounds.student_servers import StudentOnServers
from distill.signals import SignalStore
from distill.teachers.local_scores import LocalScores
from distill.teachers.protocol import HiddenSignal, Signal
from distill.teachers.scored import Spoken, scores_of
from distill.teachers.sglang_scores import SGLangScores

pytestmark = [pytest.mark.sglang, pytest.mark.integration]
KEY, NEW, K = "open sesame", 12, 8


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, checkpoint_maker: Callable[..., Path]) -> list[Path]:
    """Return one architecture with two sets of weights: a teacher, or a student in two rounds."""
    folder = tmp_path_factory.mktemp("sglang")
    return [checkpoint_maker(folder / f"weights-{seed}", seed=seed, context=1024) for seed in (0, 1)]


@pytest.fixture(scope="module")
def served(checkpoints: list[Path]) -> Iterator[Served]:
    interpreter()
    with serving(Options(str(checkpoints[0]), hidden_states="float32", api_key=KEY)) as server:
        yield server


def spoken(checkpoint: Path) -> list[Spoken]:
    """Return prompts with answers of random tokens, some of one token, some after 700."""
    prompts = encode(load_tokenizer(checkpoint), [f"the printer {n}" + " at all" * (n % 9) for n in range(20)], 96).ids
    rng = np.random.default_rng(0)
    rows = [Spoken(prompt, rng.integers(4, 300, 1 + n % 13, dtype=np.int32)) for n, prompt in enumerate(prompts)]
    rows.append(Spoken(prompts[0], np.array([319, 5, 319, 0], np.int32)))  # the last id of the vocabulary
    return [*rows, Spoken(rng.integers(4, 300, 700, dtype=np.int32), rng.integers(4, 300, 30, dtype=np.int32))]


def student_at(url: str, checkpoint: Path, **options: Any) -> StudentOnServers:
    given = {"api_key": KEY, "top_k": 1, "max_new_tokens": NEW, "drawn": Sampling(1.0, 5), "outage_seconds": 20.0}
    return StudentOnServers(checkpoint, [url], **{**given, **options})


def prompts_of(checkpoint: Path, count: int) -> list[Any]:
    return encode(load_tokenizer(checkpoint), [f"please send me invoice {n}" for n in range(count)], 96).ids


def test_top_k_scores_are_transformers_log_probabilities_of_the_same_ids(
    served: Served, checkpoints: list[Path], tmp_path: Path
) -> None:
    rows, model = spoken(checkpoints[0]), load_model(checkpoints[0], "cpu")
    scorer = SGLangScores(checkpoints[0], [served.url], api_key=KEY, top_k=K, max_new_tokens=1)
    local = LocalScores(checkpoints[0], top_k=K, max_new_tokens=1, device="cpu")
    for at, signal in scorer.score(rows):
        row = rows[at]
        assert isinstance(signal, Signal)
        assert signal.answer.tolist() == row.answer.tolist()
        with torch.inference_mode():
            logits = model(torch.from_numpy(row.whole.astype(np.int64))[None]).logits[0]
        logprobs = logits[len(row.prompt) - 1 : -1].double().log_softmax(-1).numpy()
        likeliest = np.sort(logprobs, 1)[:, ::-1][:, :K]
        np.testing.assert_allclose(np.take_along_axis(logprobs, signal.ids.astype(np.int64), 1), likeliest, atol=1e-5)
        np.testing.assert_allclose(signal.logprobs.astype(float), likeliest, rtol=2**-10, atol=1e-5)  # kept as float16
        np.testing.assert_allclose(signal.tail, 1 - np.exp(likeliest).sum(1), atol=1e-5)
    # Who scores is no part of a signal's key: the teacher in process has nothing left to do.
    store = SignalStore(tmp_path)
    assert fetch(store, scores_of(scorer, rows)).bought_rows == len(rows)
    assert fetch(store, scores_of(local, rows)).bought_rows == 0


def test_scored_states_are_transformers_to_1e_5(served: Served, checkpoints: list[Path]) -> None:
    rows, model = spoken(checkpoints[0]), load_model(checkpoints[0], "cpu")
    scorer = SGLangScores(
        checkpoints[0], [served.url], api_key=KEY, top_k=K, max_new_tokens=1, signals_format="hidden:bf16"
    )
    found = dict(scorer.score(rows))
    assert len(found) == len(rows)
    for at, signal in found.items():
        assert isinstance(signal, HiddenSignal)
        with torch.inference_mode():
            out = model.base_model(torch.from_numpy(rows[at].whole.astype(np.int64))[None]).last_hidden_state[0].numpy()
        wanted = out[len(rows[at].prompt) - 1 : -1]
        assert np.abs(signal.states - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_what_would_kill_the_server_is_refused_before_it_is_sent(served: Served, checkpoints: list[Path]) -> None:
    scorer = SGLangScores(checkpoints[0], [served.url], api_key=KEY, top_k=K, max_new_tokens=1)
    for prompt, answer, told in (([5], [99999], "its tokenizer is another one"), ([5] * 1020, [6] * 9, "1029 tokens")):
        with pytest.raises(InputError, match=told):
            list(scorer.score([Spoken(np.array(prompt, np.int32), np.array(answer, np.int32))]))
    assert httpx.get(f"{served.url}/health").is_success


def test_a_student_answers_from_the_weights_of_its_round_and_the_version_says_so(
    served: Served, checkpoints: list[Path], tmp_path: Path
) -> None:
    prompts, said = prompts_of(checkpoints[0], 12), {}
    for checkpoint in (checkpoints[1], checkpoints[0]):
        cold = student_at(served.url, checkpoint, drawn=Sampling(1e-6, 5))  # as good as greedy
        said[checkpoint] = {at: signal.answer.tolist() for at, signal in cold.ask(prompts)}
        info = httpx.get(f"{served.url}/model_info", headers={"Authorization": f"Bearer {KEY}"}).json()
        assert info["weight_version"] == cold.version
        assert Path(info["model_path"]) == checkpoint
        local = dict(answers.LocalTeacher(checkpoint, top_k=1, max_new_tokens=NEW, device="cpu").ask(prompts))
        assert said[checkpoint] == {at: signal.answer.tolist() for at, signal in local.items()}
    assert said[checkpoints[0]] != said[checkpoints[1]]
    # Answers are kept, so that a killed round has the same ones.
    store, drawn = SignalStore(tmp_path), Sampling(1.0, 9)
    first, again = (
        answers.sampled(
            store, lambda folder, how: student_at(served.url, folder, drawn=how), checkpoints[0], drawn, prompts
        )
        for _ in range(2)
    )
    assert [a.tolist() for a in first] == [a.tolist() for a in again]


def test_another_version_than_the_one_that_was_loaded_stops_and_nothing_of_it_is_kept(
    served: Served, checkpoints: list[Path], tmp_path: Path
) -> None:
    def reload(done: int, total: int) -> None:
        if done == 4:
            body = {"model_path": str(checkpoints[1]), "weight_version": "somebody else's"}
            headers = {"Authorization": f"Bearer {KEY}"}
            assert httpx.post(
                f"{served.url}/update_weights_from_disk", json=body, headers=headers, timeout=60
            ).is_success

    store, prompts = SignalStore(tmp_path), prompts_of(checkpoints[0], 40)

    def sampler(folder: Path, how: Sampling) -> StudentOnServers:
        return student_at(served.url, folder, drawn=how, concurrency=2)

    with pytest.raises(Failure, match=r"expected (the weights|weights of version) .*student-.*somebody else's"):
        answers.sampled(store, sampler, checkpoints[0], Sampling(1.0, 9), prompts, reload)
    assert 0 < len(store) < 40
    assert len(answers.sampled(store, sampler, checkpoints[0], Sampling(1.0, 9), prompts)) == 40  # loaded again


def test_weights_that_the_server_cannot_take_are_refused_by_name_and_it_lives(
    served: Served, checkpoints: list[Path], tmp_path: Path
) -> None:
    student = student_at(served.url, checkpoints[0])
    assert student.version.startswith("student-")  # known from here on, whatever becomes of the folder
    student.folder = tmp_path / "nothing"
    with pytest.raises(InputError, match="refused the student's weights"):
        student.load([served.url])
    with pytest.raises(InputError, match="wants another API key"):
        student_at(served.url, checkpoints[0], api_key="wrong").load([served.url])
    assert httpx.get(f"{served.url}/health").is_success
