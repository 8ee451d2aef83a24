"""The in-process teacher: its answers are its model's, and it refuses students that would misread them."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill.errors import InputError
from distill.generation import greedy
from distill.models import load_model
from distill.prompts import encode, load_tokenizer
from distill.signals import SignalStore, obtain
from distill.teachers import local
from distill.teachers.local import LocalTeacher
from distill.teachers.protocol import Teacher

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
