"""What stops a training, what validation is for, and what came of it: one process, in this one."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from distill import checkpoint
from distill.batching.order import Order
from distill.errors import Failure, InputError
from distill.request import TrainRequest
from distill.settings import TrainingSettings
from distill.trainer import train
from distill.training import guards, outcome, states, validation
from distill.training.lock import alone_in
from distill.training.progress import Progress

STEPS = 6
Records = Callable[[Path], list[dict[str, Any]]]


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Killed(BaseException):
    """As SIGKILL: nothing in the training handles it."""


def trained(request: Path, *, killed_at: int = 0) -> Path:
    """Train here; the training ends without a word once the state after step `killed_at` is published."""
    with pytest.MonkeyPatch.context() as patch:
        whole = states.save

        def save(folder: Path, state: dict[str, Any], progress: Progress, *, keep: int) -> None:
            whole(folder, state, progress, keep=keep)
            if progress.step == killed_at:
                raise Killed

        patch.setattr(states, "save", save)
        if killed_at:
            with pytest.raises(Killed):
                train(TrainRequest.load(request))
        else:
            train(TrainRequest.load(request))
    return request.parent


def losses(records: list[dict[str, Any]]) -> list[float]:
    return [record["loss"] for record in records]


def test_a_resumed_training_with_dropout_equals_the_uninterrupted_one(
    request_in: Any, records_of: Records, checkpoint_maker: Any, tmp_path: Path
) -> None:
    start = checkpoint_maker(tmp_path / "start")
    config = json.loads((start / "config.json").read_text())
    without = trained(request_in(tmp_path / "without", start=start))
    (start / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.3}))
    whole = trained(request_in(tmp_path / "whole", start=start))
    request = request_in(tmp_path / "killed", start=start)
    trained(request, killed_at=4)
    np.random.seed(1)  # whatever else was drawn
    again = trained(request)
    assert losses(records_of(again)) == losses(records_of(whole)) != losses(records_of(without))
    assert [r["learning_rate"] for r in records_of(again)] == [r["learning_rate"] for r in records_of(whole)]
    assert checkpoint.digest(again / "student") == checkpoint.digest(whole / "student")


def test_a_step_that_is_no_number_is_not_taken_and_its_rows_are_named(
    request_in: Any, records_of: Records, tmp_path: Path
) -> None:
    request = request_in(tmp_path / "run")
    fields = json.loads(request.read_text())
    request.write_text(json.dumps({**fields, "learning_rate": 1e30}))
    with pytest.raises(
        Failure, match=r"step 2 was not taken: the loss is .* gradient norm nan.* lower training\.learning_rate"
    ):
        train(TrainRequest.load(request))
    suspects = json.loads((tmp_path / "run" / guards.SUSPECTS).read_text())
    assert suspects["step"] == 2
    assert len(suspects["rows"]) == len(suspects["keys"]) > 1
    assert [record["step"] for record in records_of(tmp_path / "run")] == [1]
    assert not (tmp_path / "run" / "student").exists()


def progress_after(losses: list[float], norms: list[float]) -> Progress:
    return Progress(step=len(losses), losses=losses, norms=norms)


def test_a_spike_above_the_running_median_stops_and_a_healthy_curve_does_not() -> None:
    settings = TrainingSettings(loss_spike=3, norm_spike=5, spike_steps=4)
    usual = progress_after([1.0, 0.9, 5.0, 0.8], [1.0] * 4)  # the median forgives one that was let through
    assert guards.reason(usual, 2.5, 4.0, settings) == ""
    assert "the loss is 3, more than training.loss_spike = 3 times its median 0.95" in guards.reason(
        usual, 3.0, 1.0, settings
    )
    assert "the gradient norm is 6" in guards.reason(usual, 1.0, 6.0, settings)
    assert guards.reason(progress_after([1.0] * 3, [1.0] * 3), 99.0, 99.0, settings) == ""  # too early to tell
    off = settings.model_copy(update={"loss_spike": 0.0, "norm_spike": 0.0})
    assert guards.reason(usual, 99.0, 99.0, off) == ""
    assert "nan" in guards.reason(Progress(), float("nan"), 1.0, off)


def test_a_spike_says_how_sound_rows_that_differ_are_learned_all_the_same() -> None:
    settings = TrainingSettings(loss_spike=3, spike_steps=3)
    said = guards.reason(progress_after([1.0] * 3, [1.0] * 3), 9.0, 1.0, settings)
    assert said.endswith("(where steps of sound rows differ that much, raise training.loss_spike; 0: never)")


def test_a_state_that_its_own_step_may_have_spoiled_is_to_be_deleted_and_no_other(
    request_in: Any, tmp_path: Path
) -> None:
    spike = {"loss_spike": 1e-3, "spike_steps": 3}  # step 4 is not taken
    folder = str(tmp_path / "first" / "checkpoints" / "step-000003").replace(".", r"\.")
    with pytest.raises(Failure, match=f"step 3 may have spoiled the student already.*delete '{folder}', too"):
        train(TrainRequest.load(request_in(tmp_path / "first", checkpoint_steps=1, **spike)))
    shutil.rmtree(tmp_path / "first" / "checkpoints" / "step-000003")
    with pytest.raises(Failure, match="step 4 was not taken"):  # it goes on from step 2
        train(TrainRequest.load(request_in(tmp_path / "first", checkpoint_steps=4, **spike)))
    with pytest.raises(Failure, match="the training state before it is unspoiled"):
        train(TrainRequest.load(request_in(tmp_path / "second", checkpoint_steps=2, **spike)))
    with pytest.raises(Failure, match="no training state was saved yet"):
        train(TrainRequest.load(request_in(tmp_path / "third", checkpoint_steps=9, **spike)))


def test_a_spike_is_found_by_a_resumed_training_as_well(request_in: Any, tmp_path: Path) -> None:
    request = request_in(tmp_path / "run", loss_spike=1e-3, spike_steps=3)
    for _ in range(2):  # the second one begins after the state of step 2
        with pytest.raises(Failure, match=r"step 4 was not taken: the loss is .* training\.loss_spike = 0\.001"):
            train(TrainRequest.load(request))
    assert outcome.OUTCOME not in {path.name for path in (tmp_path / "run").iterdir()}


def test_held_out_rows_are_a_function_of_key_and_seed_and_alike_rows_go_together() -> None:
    keys = np.random.default_rng(0).integers(0, 256, (4000, 32)).astype(np.uint8)
    keys[1000:2000] = keys[:1000]
    held = validation.held_out(keys, 0.1, seed=3)
    assert 0.08 < held.mean() < 0.12
    assert (held[1000:2000] == held[:1000]).all()
    assert (validation.held_out(keys[::-1], 0.1, seed=3)[::-1] == held).all()
    assert (validation.held_out(keys, 0.1, seed=4) != held).any()
    assert not validation.held_out(keys, 0.0, seed=3).any()
    assert validation.held_out(keys[:5], 1e-9, seed=3).sum() == 1
    with pytest.raises(InputError, match=r"validation_share = 0\.5 cannot be held out: all 3 rows .* ask the same"):
        validation.held_out(np.repeat(keys[:1], 3, axis=0), 0.5, seed=3)


def test_of_two_questions_one_is_always_learned_and_one_held_out() -> None:
    keys = np.random.default_rng(0).integers(0, 256, (2, 32)).astype(np.uint8)
    for seed in range(40):  # in some ten of them both are drawn
        held = validation.held_out(keys[[0, 0, 1]], 0.5, seed)
        assert held.sum() in (1, 2)
        assert held[0] == held[1] != held[2]


def test_validation_leaves_its_rows_out_and_the_order_of_the_others_as_it_is() -> None:
    lengths, held = np.full(40, 7), np.arange(40) % 5 == 0
    whole, rest = Order(lengths, 40 * 7, seed=1), Order(lengths, 40 * 7, seed=1, left_out=held)  # a pass is a step
    assert sorted(rest.rows(0)) == np.flatnonzero(~held).tolist()
    assert rest.rows(0) == [row for row in whole.rows(0) if not held[row]]
    with pytest.raises(InputError, match="no row to learn from"):
        Order(lengths, 280, seed=1, left_out=np.ones(40, np.bool_))


def test_the_best_step_by_validation_is_exported_and_training_stops_when_it_gets_no_better(
    request_in: Any, records_of: Records, tmp_path: Path
) -> None:
    changes = {"validation_share": 0.2, "validation_steps": 1, "patience": 2, "keep_checkpoints": 1}
    request = request_in(tmp_path / "run", steps=60, checkpoint_steps=50, **changes)
    fields = json.loads(request.read_text())
    request.write_text(json.dumps({**fields, "learning_rate": 0.2}))  # it soon gets worse
    output = trained(request)
    came, records = outcome.read(output), records_of(output)
    by_step = [record["validation_loss"] for record in records]
    assert came["stopped_early"]
    assert came["steps"] == len(records) == came["exported_step"] + 2 < came["steps_planned"]
    assert came["validation_loss"] == min(by_step) == by_step[came["exported_step"] - 1]
    rows = came["rows"]
    assert rows["training"] + rows["validation"] + rows["not_reached"] == rows["mixture"] == 32
    kept = {int(path.name.removeprefix("step-")) for path in (output / "checkpoints").glob("step-*")}
    assert kept == {came["exported_step"], came["steps"]}
    again = TrainRequest.load(request_in(tmp_path / "ask", start=output / "student", steps=1, **changes))
    train(again)  # with a rate of 1e-2 its first step moves little
    assert records_of(tmp_path / "ask")[0]["validation_loss"] < records[-1]["validation_loss"]


def test_a_validation_loss_that_is_no_number_is_never_the_best() -> None:
    with pytest.raises(Failure, match=r"the validation loss is nan over the 2 rows that are held out .* \[3, 4\]"):
        guards.check_validation(float("nan"), [3, 4])
    guards.check_validation(0.5, [3, 4])


def test_a_student_that_its_last_step_spoiled_is_not_exported(request_in: Any, tmp_path: Path) -> None:
    request = TrainRequest.load(request_in(tmp_path / "run", steps=1, warmup_steps=0))
    with pytest.raises(Failure, match=r"spoiled by its last step \(1\) and is not exported"):
        train(replace(request, learning_rate=1e38))
    assert not (tmp_path / "run" / "student").exists()


def test_the_best_by_validation_may_be_worse_on_the_last_batch_than_the_steps_before_it(
    request_in: Any, tmp_path: Path
) -> None:
    changes = {"validation_share": 0.2, "validation_steps": 1, "loss_spike": 1.5, "spike_steps": 3}
    request = TrainRequest.load(request_in(tmp_path / "run", steps=12, **changes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "loss", lambda *_: next(losses_to_say))
        losses_to_say = iter(range(1, 100))  # the first step is the best
        train(request)
    assert outcome.read(tmp_path / "run")["exported_step"] == 1


def test_a_training_goes_on_with_a_lower_rate_from_an_unspoiled_state(request_in: Any, tmp_path: Path) -> None:
    request = request_in(tmp_path / "run")
    trained(request, killed_at=4)
    asked = TrainRequest.load(request)
    with pytest.raises(InputError, match=r"states of another training \(other settings\)"):
        train(replace(asked, settings=asked.settings.model_copy(update={"cross_entropy_weight": 0.5})))
    lower = asked.settings.model_copy(update={"loss_spike": 3.0, "learning_rate": 1e-3, "first_learning_rate": 1e-3})
    train(replace(asked, learning_rate=1e-3, settings=lower))
    assert outcome.read(tmp_path / "run")["exported_step"] == STEPS


def test_rows_that_no_step_took_are_counted_and_not_as_learned(
    request_in: Any, records_of: Records, tmp_path: Path
) -> None:
    part = outcome.read(trained(request_in(tmp_path / "part", steps=2)))
    learned = sum(record["rows"] for record in records_of(tmp_path / "part"))
    assert len(part["not_reached_rows"]) == part["rows"]["not_reached"] == 32 - learned > 0
    assert part["rows"]["training"] == learned
    assert part["not_reached_because"].endswith("within its first pass over the rows: training.epochs is below 1")
    whole = outcome.read(trained(request_in(tmp_path / "whole", steps=5)))
    assert whole["rows"] == {"mixture": 32, "training": 32, "validation": 0, "not_reached": 0}
    assert (whole["not_reached_rows"], whole["not_reached_because"]) == ([], "")


def test_states_that_were_removed_are_said(
    request_in: Any, records_of: Records, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = request_in(tmp_path / "run", steps=4)
    before = losses(records_of(trained(request)))
    for names, said in (
        (["step-000004"], "names step-000004, which somebody has removed: the training goes on after step 2"),
        (["step-000002", "step-000004"], "names step-000002, step-000004, which somebody has removed: the training "),
    ):
        for name in names:
            shutil.rmtree(tmp_path / "run" / "checkpoints" / name)
        capsys.readouterr()
        assert losses(records_of(trained(request))) == before
        assert said in capsys.readouterr().out


def test_without_validation_the_last_step_is_exported(request_in: Any, tmp_path: Path) -> None:
    output = trained(request_in(tmp_path / "run", steps=3, keep_checkpoints=1))
    came = outcome.read(output)
    assert (came["exported_step"], came["exported_because"]) == (3, "last step (validation is off)")
    assert came["rows"]["validation"] == 0
    assert [path.name for path in (output / "checkpoints").glob("step-*")] == ["step-000003"]


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
@pytest.mark.parametrize("how", ["changed", "missing"])
def test_a_damaged_training_state_is_named_and_the_one_before_it_can_be_used(
    name: str, how: str, request_in: Any, records_of: Records, tmp_path: Path
) -> None:
    request = request_in(tmp_path / "run", steps=4)
    output = trained(request)
    latest = output / "checkpoints" / "step-000004"
    content = bytearray((latest / name).read_bytes())
    content[len(content) // 2] ^= 1
    (latest / name).unlink()
    if how == "changed":
        (latest / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"step-000004' is not what was published \({name}.*delete that folder"):
        train(TrainRequest.load(request))
    for path in latest.iterdir():
        path.unlink()
    latest.rmdir()
    before = losses(records_of(output))
    assert losses(records_of(trained(request))) == before


def test_a_damaged_list_of_states_is_named(request_in: Any, tmp_path: Path) -> None:
    request = request_in(tmp_path / "run", steps=1)
    output = trained(request)
    (output / "checkpoints" / states.LATEST).write_text("{")
    with pytest.raises(InputError, match="LATEST' is damaged"):
        train(TrainRequest.load(request))


def test_what_a_killed_training_left_half_written_is_removed(request_in: Any, tmp_path: Path) -> None:
    request = request_in(tmp_path / "run", steps=4)
    trained(request, killed_at=2)
    for name in ("step-000004.partial", "step-000003"):  # killed while writing; killed before it was published
        (tmp_path / "run" / "checkpoints" / name).mkdir()
        (tmp_path / "run" / "checkpoints" / name / "__0_0.distcp").write_bytes(b"half")
    trained(request)
    kept = {path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")}
    assert kept == {"step-000002", "step-000004"}


def test_two_trainings_do_not_share_a_folder(request_in: Any, tmp_path: Path) -> None:
    asked = TrainRequest.load(request_in(tmp_path / "run", steps=1))
    folder = tmp_path / "run" / "checkpoints"
    with (
        alone_in(folder),
        pytest.raises(InputError, match="another training is at work"),
        alone_in(folder, patience=0.0),
    ):
        pass
    train(asked)
    assert (tmp_path / "run" / "student").is_dir(), "the lock ends with who made it"
