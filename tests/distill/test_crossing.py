"""From prompts to a student that has another tokenizer than its teacher, and answers alike."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, trainers
from transformers import PreTrainedTokenizerFast

from demo.teacher import make_student, train_teacher
from demo.tokenizer import ANSWER, BOS, CHAT_TEMPLATE, EOS, PAD, train_tokenizer
from distill import mixture
from distill.batches import collate
from distill.errors import Failure, InputError
from distill.prepare import prepare
from distill.prompts import load_tokenizer
from distill.request import TrainRequest
from distill.scoring import score
from distill.settings import StudentSettings, TrainingSettings, identifies
from distill.signals import SignalStore
from distill.teacher_settings import TeacherSettings
from distill.teachers.local import LocalTeacher
from distill.trainer import train
from flows.settings import Settings, result_changing

ANSWERS = {
    "printer": "hardware / low",
    "invoice": "billing / high",
    "password": "account / normal",
    "mail": "technical",
}
WORDS = ["please", "the", "again", "my", "since", "not", "today", "help", "naïve", "😀", "is", "broken"]
FEW = TrainingSettings(epochs=20, learning_rate=3e-3, tokens_per_step=900, warmup_steps=10, device="cpu",
                       checkpoint_steps=10_000)  # fmt: skip
SIZE: dict[str, Any] = {"width": 64, "layers": 2, "heads": 4, "seed": 0}


def tickets(count: int, seed: int) -> tuple[list[str], list[str]]:
    """Prompts with one telling word among others, and what it tells."""
    random = np.random.default_rng(seed)
    kinds = random.choice(list(ANSWERS), count)
    prompts = [" ".join(random.permutation([*random.choice(WORDS, 5), kind])) for kind in kinds]
    return prompts, [ANSWERS[kind] for kind in kinds]


def letters(texts: list[str]) -> PreTrainedTokenizerFast:
    """A token for each letter."""
    backend = Tokenizer(models.BPE())
    backend.decoder = decoders.Fuse()
    special = [PAD, BOS, EOS, ANSWER]
    few = trainers.BpeTrainer(vocab_size=1, special_tokens=special, show_progress=False)
    backend.train_from_iterator([*texts, *ANSWERS.values()], few)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, bos_token=BOS, eos_token=EOS, chat_template=CHAT_TEMPLATE,
        additional_special_tokens=[ANSWER],
    )  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prompts, answers = tickets(600, 0)
    tokenizer = train_tokenizer(prompts, ANSWERS.values(), 380)
    recipe = {**SIZE, "steps": 80, "batch_size": 64, "learning_rate": 3e-3}
    return train_teacher(tmp_path_factory.mktemp("teacher") / "teacher", tokenizer, prompts, answers, **recipe)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return base(kind) -> a student with random weights and a tokenizer of this kind."""

    def make(kind: str) -> Path:
        prompts, _ = tickets(300, 1)
        tokenizer = (
            letters(prompts) if kind == "letters" else train_tokenizer(prompts[::9], [*ANSWERS.values()][:3], 360)
        )
        return make_student(tmp_path_factory.mktemp("base") / kind, tokenizer, **SIZE)

    return make


def prepared(teacher: Path, base: Path, output: Path, prompts: list[str], **changes: Any) -> TrainRequest:
    student = StudentSettings(base=str(base), max_prompt_tokens=160, max_new_tokens=24)
    asked = {"model": str(teacher), "device": "cpu", "cross_tokenizer": True, "min_aligned": 0.05, "top_k": 16}
    given: dict[str, Any] = {"training": FEW, "on_line": lambda line: None, **changes}
    asked |= given.pop("asked", {})
    return prepare(prompts, student=student, teacher=TeacherSettings.model_validate(asked), output=output, **given)


def agreement(model: Path, teacher: Path, prompts: list[str]) -> float:
    said = [score(one, prompts, max_prompt_tokens=160, max_new_tokens=24).responses for one in (model, teacher)]
    return float(np.mean([mine == theirs for mine, theirs in zip(*said, strict=True)]))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "share"), [("bytes", (0.4, 0.9)), ("letters", (0.05, 0.6))])
def test_a_student_with_another_tokenizer_learns_to_answer_as_its_teacher(
    kind: str, share: tuple[float, float], teacher: Path, base: Callable[[str], Path], tmp_path: Path
) -> None:  # fmt: skip
    start, lines = base(kind), list[str]()
    prompts, _ = tickets(240, 2)
    held_out, _ = tickets(80, 3)
    request = prepared(teacher, start, tmp_path / "out", prompts, on_line=lines.append)
    found = mixture.load(Path(request.mixture)).alignment
    assert found is not None
    assert share[0] < found.matched.mean() < share[1]
    assert f"another tokenizer: {found.matched.mean():.1%} of {len(found.answers)} answer tokens aligned" in lines[-1]
    before = agreement(start, teacher, held_out)
    train(request)
    after = agreement(tmp_path / "out" / "student", teacher, held_out)
    assert before < 0.05
    assert after > 0.8, "of what it has not seen"
    last = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["uld"] > 0
    assert last["divergence"] < 0.2


def test_the_rows_of_a_batch_are_in_the_students_tokens(
    teacher: Path, base: Callable[[str], Path], tmp_path: Path
) -> None:
    start = base("letters")
    prompts, _ = tickets(8, 4)
    request = prepared(teacher, start, tmp_path / "out", prompts)
    rows, store, own = mixture.load(Path(request.mixture)), SignalStore(request.signals), load_tokenizer(start)
    batch = collate(rows, store, [[0, 3], [1]], pad=0)
    flat = batch.input_ids.ravel()
    assert flat[batch.answer_at + 1].tolist() == batch.answer.tolist()
    theirs = load_tokenizer(teacher)
    for row in (0, 1, 3):
        assert rows.alignment is not None
        said = store.get(rows.keys[row].tobytes()).answer
        assert own.decode(rows.alignment.answer(row), skip_special_tokens=True) == theirs.decode(
            said, skip_special_tokens=True
        )
        assert own.decode(rows.prompt(row)) == prompts[row] + ANSWER
    assert len(store) == len(set(prompts)), "the store has the teacher's tokens alone"


def test_an_alignment_that_belongs_to_other_signals_is_refused(
    teacher: Path, base: Callable[[str], Path], tmp_path: Path
) -> None:
    request = prepared(teacher, base("letters"), tmp_path / "out", tickets(8, 4)[0])
    rows, store = mixture.load(Path(request.mixture)), SignalStore(request.signals)
    assert rows.alignment is not None
    rows.alignment.theirs[0] = 500
    with pytest.raises(Failure, match="alignment does not belong to its signals"):
        collate(rows, store, [[0]], pad=0)


@pytest.mark.parametrize("damage", ["offsets", "matched", "token_map", "gone"])
def test_a_damaged_alignment_is_named(damage: str, teacher: Path, base: Callable[[str], Path], tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    request = prepared(teacher, base("letters"), tmp_path / "out", tickets(3, 4)[0])
    parts = load_file(request.mixture)
    if damage == "gone":
        del parts["alignment.theirs"]
    else:
        parts[f"alignment.{damage}"] = {"offsets": parts["alignment.offsets"] + 1, "matched": np.zeros(2, np.bool_),
                                        "token_map": parts["alignment.token_map"] - 7}[damage]  # fmt: skip
    save_file(parts, request.mixture)
    with pytest.raises(InputError, match=r"mixture '.*mixture.safetensors'.*again"):
        mixture.load(Path(request.mixture))


def test_too_few_aligned_tokens_are_refused_before_training_and_the_answers_are_kept(
    teacher: Path, base: Callable[[str], Path], tmp_path: Path
) -> None:
    start = base("letters")
    with pytest.raises(InputError, match=r"teacher\.min_aligned is 99\.0%.*what the teacher said is kept"):
        prepared(teacher, start, tmp_path / "out", tickets(8, 4)[0], asked={"min_aligned": 0.99})
    assert not (tmp_path / "out" / "request.json").exists()
    assert len(SignalStore(tmp_path / "out" / "signals")) == 8


def test_states_and_a_live_teacher_are_refused_before_anything_is_asked(
    teacher: Path, base: Callable[[str], Path], tmp_path: Path
) -> None:
    start = base("letters")
    for given in ({"asked": {"signals_format": "hidden:bf16"}},
                  {"training": FEW.model_copy(update={"live_teacher": True})}):  # fmt: skip
        with pytest.raises(InputError, match="another tokenizer a student learns the likeliest tokens alone"):
            prepared(teacher, start, tmp_path / "out", ["x"], **given)
    states = LocalTeacher(teacher, top_k=4, max_new_tokens=4, signals_format="hidden:bf16", cross_tokenizer=True)
    with pytest.raises(InputError, match="states give the teacher's tokens alone: use topk:K"):
        states.check(load_tokenizer(start), 4)


def test_with_one_tokenizer_nothing_changes(teacher: Path, tmp_path: Path) -> None:
    prompts, _ = tickets(12, 5)
    one, other = (
        prepared(teacher, teacher, tmp_path / name, prompts, asked={"cross_tokenizer": name == "on"})
        for name in ("on", "off")
    )
    assert Path(one.mixture).read_bytes() == Path(other.mixture).read_bytes()
    assert one.digest() == other.digest()


def test_a_request_of_before_there_was_a_setting_keeps_its_identity() -> None:
    made = TrainRequest("a", "b", "c", "d", 1.0, 1e-3, TrainingSettings())
    changed = TrainRequest("a", "b", "c", "d", 1.0, 1e-3, TrainingSettings(uld_weight=1.0))
    fields = TrainingSettings.model_fields
    assert not identifies(fields["uld_weight"], 0.5, "off_policy")
    assert identifies(fields["uld_weight"], 1.0, "off_policy")
    assert changed.digest() != made.digest()
    assert not {"teacher.cross_tokenizer", "training.uld_weight", "teacher.min_aligned"} & set(
        result_changing(Settings())
    )
    asked = Settings.model_validate({"teacher": {"cross_tokenizer": True, "min_aligned": 0.2}})
    assert result_changing(asked)["teacher.cross_tokenizer"] is True
    assert "teacher.min_aligned" not in result_changing(asked)
