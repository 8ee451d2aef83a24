"""The demos' models: trained once, reproducible, and never taken for finished when they are not."""

import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from demo import teacher
from demo.tokenizer import train_tokenizer
from distill.errors import InputError
from distill.prompts import load_tokenizer
from distill.scoring import score

COLOURS = {"red": "stop / high", "green": "go / low", "amber": "wait / normal"}
PROMPTS = [f"the light {n % 7} is {colour}" for n in range(40) for colour in COLOURS]
ANSWERS = [COLOURS[prompt.split()[-1]] for prompt in PROMPTS]
SHAPE: dict[str, Any] = {"width": 32, "layers": 1, "heads": 2, "batch_size": 32, "learning_rate": 1e-2, "seed": 0}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(PROMPTS, ANSWERS, 400)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_a_teacher_answers_what_it_was_shown(tokenizer: Any, tmp_path: Path) -> None:
    folder = teacher.train_teacher(tmp_path / "t", tokenizer, PROMPTS, ANSWERS, steps=80, **SHAPE)
    found = score(folder, PROMPTS[:30], max_prompt_tokens=64, max_new_tokens=12)
    assert found.responses == ANSWERS[:30]


def test_a_finished_teacher_is_not_trained_again(tokenizer: Any, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    for _ in range(2):
        teacher.train_teacher(
            tmp_path / "t", tokenizer, PROMPTS, ANSWERS, steps=12, progress=lambda *at: calls.append(at), **SHAPE
        )
    assert calls == [(10, 12), (12, 12)]


@pytest.mark.parametrize("change", ["answer", "steps", "unfinished", "damaged"])
def test_what_is_not_the_finished_teacher_of_these_inputs_is_trained(
    tokenizer: Any, tmp_path: Path, change: str
) -> None:
    folder, answers, steps = tmp_path / "t", list(ANSWERS), 4
    teacher.train_teacher(folder, tokenizer, PROMPTS, answers, steps=steps, **SHAPE)
    if change == "answer":
        answers[0] = "go / low"
    elif change == "steps":
        steps = 5
    elif change == "unfinished":
        (folder / teacher.RECIPE).unlink()
    else:
        (folder / teacher.RECIPE).write_text("{")
    calls: list[int] = []
    teacher.train_teacher(
        folder, tokenizer, PROMPTS, answers, steps=steps, progress=lambda done, _: calls.append(done), **SHAPE
    )
    assert calls


def test_a_failed_save_leaves_the_old_model_and_no_rest(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = teacher.make_student(tmp_path / "s", tokenizer, 32, 1, 2, seed=0)
    before = weights(folder)

    def full_disk(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(tokenizer), "save_pretrained", full_disk)
    with pytest.raises(OSError, match="No space left"):
        teacher.make_student(folder, tokenizer, 32, 1, 2, seed=1)
    assert weights(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_the_same_seed_gives_the_same_weights(tokenizer: Any, tmp_path: Path) -> None:
    torch.manual_seed(123)
    one = teacher.train_teacher(tmp_path / "1", tokenizer, PROMPTS, ANSWERS, steps=6, **SHAPE)
    drawn = torch.rand(1)
    other = teacher.train_teacher(tmp_path / "2", tokenizer, PROMPTS, ANSWERS, steps=6, **SHAPE)
    torch.manual_seed(123)
    assert torch.equal(drawn, torch.rand(1))  # training leaves the caller's random numbers alone
    assert weights(one) == weights(other)
    shutil.rmtree(other)
    third = teacher.train_teacher(other, tokenizer, PROMPTS, ANSWERS, steps=6, **{**SHAPE, "seed": 1})
    assert weights(one) != weights(third)


def test_the_base_is_a_checkpoint_that_can_serve(tokenizer: Any, tmp_path: Path) -> None:
    folder = teacher.make_student(tmp_path / "s", tokenizer, 32, 1, 2, seed=0)
    same = teacher.make_student(tmp_path / "same", tokenizer, 32, 1, 2, seed=0)
    assert weights(folder) == weights(same)
    assert load_tokenizer(folder).chat_template == tokenizer.chat_template
    found = score(folder, ["the light is red"], max_prompt_tokens=32, max_new_tokens=4)
    assert found.tokens[0] <= 4


def test_prompts_without_answers_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="3 prompts and 2 answers"):
        teacher.train_teacher(tmp_path / "t", tokenizer, PROMPTS[:3], ANSWERS[:2], steps=1, **SHAPE)


def test_every_row_comes_as_often_and_passes_differ() -> None:
    batches = list(itertools.islice(teacher._batches(640, 64, np.random.default_rng(1)), 20))
    assert sorted(row for batch in batches for row in batch) == sorted(2 * list(range(640)))
    assert batches[:10] != batches[10:]


def test_packed_rows_see_only_themselves_and_weigh_as_rows() -> None:
    rows = [np.array([5, 6, 7, 2], np.int32), np.array([8, 2], np.int32), np.full(teacher.LINE, 9, np.int32)]
    packed = teacher._packed(rows, [2, 1, teacher.LINE - 1], [0, 1, 2], pad=0)
    assert packed.ids.shape == (2, teacher.LINE)  # the long row has a line of its own, the others share one
    assert packed.ids[1, :7].tolist() == [5, 6, 7, 2, 8, 2, 0]
    assert packed.places[1, :6].tolist() == [0, 1, 2, 3, 0, 1]
    sees = packed.mask[1, 0, :6, :6]
    assert sees[3].tolist() == [True, True, True, True, False, False]
    assert sees[4].tolist() == [False, False, False, False, True, False]
    weights = packed.weights[1, :7]
    assert weights[[2, 3, 5]].tolist() == pytest.approx([1 / 3] * 3)  # answers: summed a row, averaged over rows
    assert weights[[0, 4, 6]].tolist() == [0, 0, 0]  # first tokens and padding
    assert float(weights[1]) == pytest.approx(0.2 / (1 + teacher.LINE - 2))
