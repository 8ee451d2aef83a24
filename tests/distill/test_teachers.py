"""The in-process teacher: its answers are its model's, and it refuses students that would misread them."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill.buying import obtain
from distill.errors import InputError
from distill.generation import Sampling, greedy, greedy_batches
from distill.models import load_model
from distill.prompts import encode, load_tokenizer
from distill.settings import StudentSettings
from distill.signals import SignalStore
from distill.teacher_settings import TeacherSettings
from distill.teachers import local
from distill.teachers.chosen import teacher_of
from distill.teachers.local import LocalTeacher
from distill.teachers.protocol import HiddenSignal, Signal, Teacher

PROMPTS = ["The printer does not print", "log in", "How do I set up the mail program?", "x", "invoice"]


def make(model: Path, **options: Any) -> LocalTeacher:
    defaults: dict[str, Any] = {"top_k": 6, "max_new_tokens": 5, "batch_size": 2, "device": "cpu"}
    return LocalTeacher(model, **{**defaults, **options})


def test_every_prompt_is_answered_once_with_what_the_model_says(tiny_checkpoint: Path) -> None:
    teacher: Teacher = make(tiny_checkpoint)
    seen: list[tuple[int, int]] = []
    prompts = encode(load_tokenizer(tiny_checkpoint), PROMPTS, 100).ids
    rows = list(teacher.ask(prompts, lambda *done: seen.append(done)))
    assert sorted(at for at, _ in rows) == list(range(5))
    assert seen == [(2, 5), (4, 5), (5, 5)]
    model = load_model(tiny_checkpoint, "cpu")
    expected = greedy(model, prompts, max_new_tokens=5, eos=[1], pad=0, top_k=6, batch_size=2)
    for at, signal in rows:
        np.testing.assert_array_equal(signal.answer, expected[at].answer)
        np.testing.assert_array_equal(signal.ids, expected[at].ids)
        np.testing.assert_array_equal(signal.logprobs, expected[at].topk)
        np.testing.assert_array_equal(signal.tail, expected[at].tail)


def test_an_overlapping_window_buys_only_its_new_prompts(tiny_checkpoint: Path, tmp_path: Path) -> None:
    prompts = encode(load_tokenizer(tiny_checkpoint), PROMPTS, 100).ids
    first = obtain(SignalStore(tmp_path), make(tiny_checkpoint), prompts[:3])
    second = obtain(SignalStore(tmp_path), make(tiny_checkpoint), prompts[1:])
    other = obtain(SignalStore(tmp_path), make(tiny_checkpoint, top_k=7), prompts[1:])
    assert [(one.bought_rows, one.reused_rows) for one in (first, second, other)] == [(3, 0), (2, 2), (4, 0)]
    store = SignalStore(tmp_path)
    expected = dict(make(tiny_checkpoint, batch_size=9).ask(prompts))
    for at, key in enumerate([*first.keys[:1], *second.keys]):
        found = store.get(key.tobytes())
        np.testing.assert_array_equal(found.answer, expected[at].answer)
        np.testing.assert_allclose(found.tail, expected[at].tail, atol=2e-4)  # its logarithm is kept as float16


def test_the_first_rows_are_there_before_the_last_are_asked(tiny_checkpoint: Path) -> None:
    seen: list[tuple[int, int]] = []
    prompts = encode(load_tokenizer(tiny_checkpoint), PROMPTS, 100).ids
    rows = make(tiny_checkpoint).ask(prompts, lambda *done: seen.append(done))
    next(rows), next(rows), next(rows)
    assert seen == [(2, 5)]


def test_what_decides_an_answer_is_in_its_identity(tiny_checkpoint: Path, other_checkpoint: Path) -> None:
    teacher = make(tiny_checkpoint)
    assert teacher.digest == make(tiny_checkpoint, batch_size=7).digest != make(other_checkpoint).digest
    assert (teacher.format, teacher.sampling) == ("topk:6", "greedy:max_new_tokens=5")


def test_a_student_with_another_tokenizer_is_refused_and_both_checkpoints_named(
    tiny_checkpoint: Path, other_checkpoint: Path
) -> None:
    teacher = make(tiny_checkpoint)
    teacher.check(load_tokenizer(tiny_checkpoint), 6)
    with pytest.raises(InputError) as refused:
        teacher.check(load_tokenizer(other_checkpoint), 6)
    assert str(tiny_checkpoint) in str(refused.value)
    assert str(other_checkpoint) in str(refused.value)


def test_more_log_probabilities_than_tokens_are_refused(tiny_checkpoint: Path) -> None:
    teacher, tokenizer = make(tiny_checkpoint), load_tokenizer(tiny_checkpoint)
    teacher.check(tokenizer, 320)
    with pytest.raises(InputError, match=r"teacher\.top_k = 321.*320 tokens"):
        teacher.check(tokenizer, 321)


def test_checking_and_identity_load_no_weights(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "load_model", lambda *_: pytest.fail("the weights were loaded"))
    teacher = make(tiny_checkpoint)
    teacher.check(load_tokenizer(tiny_checkpoint), 6)
    assert len(teacher.digest) == 64


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_teacher_with_a_damaged_file_is_refused_and_the_file_named(
    tiny_checkpoint: Path, tmp_path: Path, name: str, content: str
) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "teacher")
    (folder / name).write_text(content)
    with pytest.raises(InputError, match=rf"teacher\.model .*: {name} (is damaged|holds no table)"):
        LocalTeacher(folder, top_k=4, max_new_tokens=4)


def test_a_teacher_that_lacks_a_file_is_refused_at_once(tiny_checkpoint: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "teacher")
    (copy / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"teacher\.model .*model\.safetensors"):
        make(copy)


def from_states(teacher: LocalTeacher, model: Any, prompts: list[Any]) -> float:
    """The largest difference between lm_head(states) and the logits of a plain forward pass over prompt and answer."""
    import torch

    differences = []
    for at, signal in teacher.ask(prompts):
        assert isinstance(signal, HiddenSignal)
        assert signal.states.shape == (len(signal.answer), 32)
        ids = torch.tensor(np.concatenate([prompts[at], signal.answer]))[None].long()
        with torch.no_grad():
            expected = model(ids).logits[0, len(prompts[at]) - 1 : -1]
            rebuilt = model.lm_head(torch.from_numpy(signal.states))
        differences.append((rebuilt - expected).abs().max())
        assert (rebuilt.argmax(-1).numpy() == signal.answer).all()
    return float(torch.stack(differences).max())  # a NaN stays one


def test_the_output_layer_makes_the_logits_of_a_forward_pass_from_the_states(tiny_checkpoint: Path) -> None:
    prompts = encode(load_tokenizer(tiny_checkpoint), PROMPTS, 100).ids
    teacher = make(tiny_checkpoint, signals_format="hidden:bf16")
    assert from_states(teacher, load_model(tiny_checkpoint, "cpu"), prompts) <= 1e-5


@pytest.mark.parametrize(("name", "error"), [("hidden:bf16", 0.004), ("hidden:int8", 0.01), ("hidden:svd4", 1.0)])
def test_states_are_bought_once_and_come_back_from_the_store(
    tiny_checkpoint: Path, tmp_path: Path, name: str, error: float
) -> None:
    prompts = encode(load_tokenizer(tiny_checkpoint), PROMPTS, 100).ids
    teacher = make(tiny_checkpoint, signals_format=name)
    assert teacher.format == name
    assert obtain(SignalStore(tmp_path), teacher, prompts).bought_rows == 5
    again = obtain(SignalStore(tmp_path), teacher, prompts)
    assert (again.bought_rows, again.reused_rows) == (0, 5)
    store, expected = SignalStore(tmp_path), dict(teacher.ask(prompts))
    lengths, found = store.get_many(again.keys)
    assert isinstance(found, HiddenSignal)
    assert lengths.tolist() == [len(expected[at].answer) for at in range(5)]
    np.testing.assert_array_equal(found.answer, np.concatenate([expected[at].answer for at in range(5)]))
    given = np.concatenate([expected[at].states for at in range(5)])  # type: ignore[union-attr]
    assert 0 < np.linalg.norm(found.states - given) / np.linalg.norm(given) < error


def test_a_format_decides_what_is_kept_and_goes_before_top_k(tiny_checkpoint: Path) -> None:
    made = {text: make(tiny_checkpoint, signals_format=text) for text in ("", "topk:9", "hidden:int8")}
    assert {text: teacher.format for text, teacher in made.items()} == {
        "": "topk:6",
        "topk:9": "topk:9",
        "hidden:int8": "hidden:int8",
    }
    prompts = encode(load_tokenizer(tiny_checkpoint), PROMPTS, 100).ids
    _, signal = next(iter(made["topk:9"].ask(prompts)))
    assert isinstance(signal, Signal)
    assert signal.ids.shape[1] == 9
    with pytest.raises(InputError, match=r"teacher\.signals_format 'hidden:fp8': use topk:K, hidden:bf16"):
        make(tiny_checkpoint, signals_format="hidden:fp8")
    with pytest.raises(InputError, match=r"hidden:svd32.*width 32; use fewer"):
        next(iter(make(tiny_checkpoint, signals_format="hidden:svd32").ask(prompts)))
    for text in ("topk:9", "hidden:int8"):
        made[text].check(load_tokenizer(tiny_checkpoint), 10**6)  # the settings' k, which neither goes by


def test_states_of_a_model_that_scales_its_logits_are_refused(tiny_checkpoint: Path) -> None:
    model, tokenizer = load_model(tiny_checkpoint, "cpu"), load_tokenizer(tiny_checkpoint)
    prompts = encode(tokenizer, PROMPTS, 100).ids
    forward = model.forward

    def scaled(*given: Any, **options: Any) -> Any:
        output = forward(*given, **options)
        output.logits = output.logits / 2
        return output

    model.forward = scaled
    with pytest.raises(InputError, match=r"scales or caps the logits.*topk:K"):
        list(greedy_batches(model, prompts, max_new_tokens=3, eos=[1], pad=0, hidden=True))
    assert not model._forward_hooks
    assert not model.lm_head._forward_hooks


def test_of_drawn_answers_one_log_probability_is_kept_and_of_others_what_the_settings_say(
    tiny_checkpoint: Path,
) -> None:
    student, asked = StudentSettings(), TeacherSettings(model=str(tiny_checkpoint), signals_format="hidden:bf16")
    assert teacher_of(student, asked).format == "hidden:bf16"
    assert teacher_of(student, asked, Sampling(temperature=1.0, seed=0)).format == "topk:1"


def test_more_kept_tokens_than_there_are_is_found_before_the_teacher_is_loaded(tiny_checkpoint: Path) -> None:
    asked = teacher_of(StudentSettings(), TeacherSettings(model=str(tiny_checkpoint), signals_format="topk:9999"))
    with pytest.raises(InputError, match=r"9999, but the tokenizer .* has 320 tokens"):
        asked.check(load_tokenizer(tiny_checkpoint), 32)
