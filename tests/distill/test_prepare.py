"""From prompts to a training request: what is asked, what is written, and what is refused before it costs anything."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from distill import checkpoint, mixture
from distill.errors import Failure, InputError
from distill.prepare import prepare
from distill.request import TrainRequest
from distill.settings import StudentSettings, TrainingSettings
from distill.signals import SignalStore
from distill.teacher_settings import TeacherSettings
from distill.teachers import local
from distill.trainer import train

PROMPTS = [f"the printer {n} does not print" for n in range(6)]
FEW = TrainingSettings(epochs=1, learning_rate=1e-3, tokens_per_step=60, device="cpu")
Preparer = Callable[..., TrainRequest]


@pytest.fixture(scope="module")
def teacher(checkpoint_maker: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint_maker(tmp_path_factory.mktemp("teacher") / "teacher", seed=1)


@pytest.fixture
def prepared(tiny_checkpoint: Path, teacher: Path, tmp_path: Path) -> Preparer:
    """Return prepared(prompts, student={}, teacher={}, **arguments) -> the request of tmp_path/out."""

    def call(prompts: Any = PROMPTS, **given: Any) -> TrainRequest:
        student = {"base": str(tiny_checkpoint), "max_new_tokens": 4, **given.pop("student", {})}
        asked = {"model": str(teacher), "top_k": 4, "device": "cpu", **given.pop("teacher", {})}
        whole = {"training": FEW, "output": tmp_path / "out", "on_line": lambda line: None, **given}
        settings = {"student": StudentSettings(**student), "teacher": TeacherSettings(**asked)}
        return prepare(prompts, **settings, **whole)

    return call


def test_every_prompt_is_a_row_and_each_different_one_is_bought_once(prepared: Preparer) -> None:
    lines: list[str] = []
    request = prepared([*PROMPTS, PROMPTS[0]], on_line=lines.append)
    assert "7 prompts, 6 asked and 1 found again" in lines[-1]
    assert (len(mixture.load(Path(request.mixture))), len(SignalStore(request.signals))) == (7, 6)
    assert TrainRequest.load(Path(request.output) / "request.json") == request
    assert request.teacher == "", "its weights are not needed any more"
    prepared(on_line=lines.append)
    assert "6 prompts, 0 asked and 6 found again" in lines[-1]


def test_prompts_that_are_cut_are_counted(prepared: Preparer) -> None:
    lines: list[str] = []
    prepared([*PROMPTS, "the printer " * 40], student={"max_prompt_tokens": 60}, on_line=lines.append)
    assert lines[0].startswith("1 of 7 prompts are longer than student.max_prompt_tokens = 60")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prompts": []}, "there are no prompts"),
        ({"prompts": "one text"}, "are to be a list of texts"),
        ({"prompts": ["one", None]}, "are to be a list of texts"),
        ({"student": {"base": ""}}, "student.base is empty"),
        ({"student": {"base": "/no/such"}}, "student.base '/no/such': there is no such folder"),
        ({"teacher": {"model": "/no/such"}}, "teacher.model '/no/such': there is no such folder"),
        ({"teacher": {"top_k": 4000}}, "teacher.top_k = 4000, but the tokenizer"),
        ({"student": {"max_new_tokens": 250}}, "has a context of 256: lower student.max_prompt_tokens"),
        ({"training": TrainingSettings(hidden_weight=1)}, "hidden states are not among top-k signals"),
        ({"output": "/dev/null/out"}, "output '/dev/null/out' cannot be written"),
    ],
)
def test_what_cannot_be_used_is_refused_before_any_model_is_loaded(
    given: dict[str, Any], said: str, prepared: Preparer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "load_model", None)
    with pytest.raises(InputError, match=said.replace(".", r"\.")) as error:
        prepared(**given)
    assert "\n" not in str(error.value)


def test_a_teacher_with_another_tokenizer_is_refused(prepared: Preparer, other_checkpoint: Path) -> None:
    with pytest.raises(InputError, match="have different tokenizers"):
        prepared(teacher={"model": str(other_checkpoint)})


def test_training_alone_leaves_no_group_and_one_of_the_callers_stays(prepared: Preparer, tmp_path: Path) -> None:
    request = prepared()
    train(request)
    assert not dist.is_initialized()
    with pytest.raises(InputError, match="there is no such file"):
        train(replace(request, mixture=str(tmp_path / "nothing")))
    assert not dist.is_initialized()
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        train(replace(request, output=str(tmp_path / "again")))
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()
    assert checkpoint.digest(tmp_path / "again" / "student") == checkpoint.digest(tmp_path / "out" / "student")


def test_a_training_that_a_guard_stopped_goes_on_from_its_last_state_with_a_lower_rate(
    prepared: Preparer, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"epochs": 3, "checkpoint_steps": 1, "warmup_steps": 0, "loss_spike": 1e-3, "spike_steps": 3}
    few = FEW.model_copy(update=changes)
    with pytest.raises(Failure, match=r"step 4 was not taken: .*lower training\.learning_rate"):
        train(prepared(training=few))
    lower = few.model_copy(update={"learning_rate": 1e-4, "first_learning_rate": 1e-4, "loss_spike": 0.0})
    train(prepared(training=lower))
    assert "resumed after step 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "other"),
    [
        ({"training": FEW.model_copy(update={"seed": 1})}, "settings"),
        ({"prompts": PROMPTS[1:]}, "mixture"),
        ({"student": {"base": "copy"}}, "start"),
    ],
)
def test_the_states_of_another_training_are_not_taken_for_this_ones(
    change: dict[str, Any], other: str, prepared: Preparer, checkpoint_maker: Any, tmp_path: Path
) -> None:
    made = prepared()
    train(made)
    if "student" in change:
        change = {"student": {"base": str(checkpoint_maker(tmp_path / "copy", seed=2))}}
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.*") if path.is_file()}
    with pytest.raises(InputError, match=rf"has the states of another training \(other {other}\)"):
        prepared(**change)
    assert (
        before.items()
        <= {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.*") if path.is_file()}.items()
    ), "what the finished student was made from is kept"
    if other == "settings":
        with pytest.raises(InputError, match="has the states of another training"):
            train(replace(made, settings=FEW.model_copy(update={"seed": 1})))
    shutil.rmtree(tmp_path / "out" / "checkpoints")
    train(prepared(**change))
