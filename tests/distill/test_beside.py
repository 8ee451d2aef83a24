"""A teacher in the training process: live, or its output layer for stored states; and learning from its layers."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore
from transformers import LlamaConfig, LlamaForCausalLM, PhiConfig, PhiForCausalLM

from benchmarks.textbook import divergence_of
from distill import checkpoint, mixture
from distill.batches import Batches
from distill.batching.attention import layout_of
from distill.buying import obtain
from distill.errors import InputError
from distill.loss.formulas import FORMULAS
from distill.loss.inside import require_whole_maps
from distill.loss.objective import Objective
from distill.models import load_model, output_layer
from distill.prompts import load_tokenizer
from distill.request import TrainRequest
from distill.settings import TrainingSettings
from distill.signals import SignalStore
from distill.teachers.beside import Beside, beside, check_weights
from distill.teachers.local import LocalTeacher
from distill.trainer import train
from distill.training.steplog import PARTS
from tests.distill.test_guards import trained

CPU = torch.device("cpu")
Records = Callable[[Path], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def teacher(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wider and deeper teacher than the student, whose output layer is padded to a larger vocabulary."""
    folder = tmp_path_factory.mktemp("teacher") / "wide"
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=320 + 16,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    load_tokenizer(tiny_checkpoint).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def asked(teacher: Path, made_up_mixture: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return asked(format) -> folder of the made-up prompts with this teacher's signals for them."""

    def ask(name: str) -> Path:
        rows = mixture.load(made_up_mixture / "mixture.safetensors")
        prompts = [rows.prompt(row) for row in range(len(rows))]
        folder = tmp_path_factory.mktemp("asked")
        made = LocalTeacher(teacher, top_k=8, max_new_tokens=6, device="cpu", signals_format=name)
        found = obtain(SignalStore(folder / "signals"), made, prompts)
        mixture.save(folder / "mixture.safetensors", prompts, found.keys)
        return folder

    return ask


@pytest.fixture(scope="module")
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def one_step(
    student: Any, folder: Path, settings: TrainingSettings, teacher: Beside | None, *, tokens_per_pass: int = 150
) -> tuple[Tensor, list[int], Objective]:
    """Return the parts of the loss of one step, its rows, and the objective, which has the gradients."""
    layout, _ = layout_of(student, settings, teacher.model if teacher else None)
    batches = Batches(
        mixture.load(folder / "mixture.safetensors"),
        SignalStore(folder / "signals"),
        tokens_per_step=300,
        tokens_per_pass=tokens_per_pass,
        layout=layout,
        width=32,
        pad=0,
        seed=0,
    )
    step, objective = batches.step(0), Objective(student, settings, layout, teacher)
    total = torch.zeros(len(PARTS), dtype=torch.float64)
    for batch in step.passes:
        loss, parts = objective(batch)
        loss.backward()
        torch.testing.assert_close(loss.double(), parts.sum(), rtol=1e-5, atol=0)
        total += parts
    return total, step.rows, objective


@pytest.mark.parametrize("kind", FORMULAS)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_a_live_teachers_divergence_is_that_of_both_models_logits(
    kind: Any, temperature: float, tiny_checkpoint: Path, teacher: Path, asked: Callable[[str], Path]
) -> None:
    settings = TrainingSettings(live_teacher=True, divergence=kind, divergence_beta=0.3, temperature=temperature)
    student, whole, folder = load_model(tiny_checkpoint, "cpu"), load_model(teacher, "cpu"), asked("topk:1")
    parts, rows, _ = one_step(student, folder, settings, beside(str(teacher), CPU, 320, live=True))
    learned, store = mixture.load(folder / "mixture.safetensors"), SignalStore(folder / "signals")
    values: list[Tensor] = []
    for row in rows:
        prompt, answer = learned.prompt(row), store.get(learned.keys[row].tobytes()).answer
        ids = torch.from_numpy(np.concatenate([prompt, answer])).long()[None]
        with torch.no_grad():
            log_p, log_q = (
                (model(ids).logits[0, len(prompt) - 1 : -1, :320].double() / temperature).log_softmax(-1)
                for model in (whole, student)
            )
        values.append(divergence_of(kind, log_p, log_q, 0.3))
    assert parts[0].item() == pytest.approx(torch.cat(values).mean().item(), rel=1e-5)


@pytest.mark.parametrize(("name", "close"), [("hidden:bf16", 2e-2), ("hidden:int8", 5e-2), ("hidden:svd40", 0.2)])
def test_stored_states_teach_what_a_live_teacher_teaches(
    name: str, close: float, tiny_checkpoint: Path, teacher: Path, asked: Callable[[str], Path]
) -> None:
    folder = asked(name)
    gradients, losses = [], []
    for live in (True, False):
        settings, student = TrainingSettings(live_teacher=live), load_model(tiny_checkpoint, "cpu")
        parts, _, _ = one_step(student, folder, settings, beside(str(teacher), CPU, 320, live=live))
        losses.append(parts.sum().item())
        gradients.append(torch.cat([weight.grad.flatten() for weight in student.parameters()]))
    assert losses[1] == pytest.approx(losses[0], rel=close)
    assert (gradients[1] - gradients[0]).norm() <= close * gradients[0].norm()


def test_layers_are_compared_alike_however_rows_are_laid_out(
    tiny_checkpoint: Path, teacher: Path, asked: Callable[[str], Path]
) -> None:
    folder, found = asked("topk:1"), []
    for packing, tokens in ((True, 1000), (True, 150), (False, 150)):
        settings = TrainingSettings(
            live_teacher=True, hidden_weight=0.7, attention_weight=0.4, layers="uniform", packing=packing
        )
        student, other = load_model(tiny_checkpoint, "cpu"), beside(str(teacher), CPU, 320, live=True)
        for model in (student, other.model):
            model.set_attn_implementation("eager")
        parts, _, objective = one_step(student, folder, settings, other, tokens_per_pass=tokens)
        assert all(weight.grad is not None and weight.grad.any() for weight in objective.projections.parameters())
        assert len(list(objective.projections.parameters())) == 2, "one map for each of the student's layers"
        found.append((parts, torch.cat([weight.grad.flatten() for weight in student.parameters()])))
    assert (found[0][0][:-1] > 0).all(), "but for ULD, of which there is none with one tokenizer"
    for parts, gradient in found[1:]:
        torch.testing.assert_close(parts, found[0][0], rtol=1e-5, atol=0)
        assert (gradient - found[0][1]).norm() <= 1e-4 * gradient.norm()


def test_the_last_layer_is_learned_from_stored_states(
    one_process: None, tiny_checkpoint: Path, teacher: Path, asked: Callable[[str], Path], tmp_path: Path,
    request_in: Any, records_of: Records,
) -> None:  # fmt: skip
    folder = asked("hidden:bf16")
    request = TrainRequest.load(request_in(tmp_path, steps=24, hidden_weight=0.5, learning_rate=3e-3))
    train(
        replace(
            request,
            mixture=str(folder / "mixture.safetensors"),
            signals=str(folder / "signals"),
            teacher=str(teacher),
            teacher_sha256=checkpoint.digest(teacher),
        )
    )
    records = records_of(tmp_path)
    assert records[-1]["hidden"] < 0.8 * records[0]["hidden"]
    assert records[-1]["divergence"] < 0.8 * records[0]["divergence"]
    assert set(load_model(tmp_path / "student", "cpu").state_dict()) == set(
        load_model(tiny_checkpoint, "cpu").state_dict()
    ), "what brings the student to the teacher's width is no part of it"


def test_a_live_training_resumed_equals_the_uninterrupted_one(
    one_process: None, teacher: Path, asked: Callable[[str], Path], tmp_path: Path, request_in: Any, records_of: Records
) -> None:
    folder = asked("topk:1")

    def request(name: str) -> Path:
        path: Path = request_in(
            tmp_path / name, live_teacher=True, hidden_weight=0.5, attention_weight=0.5, divergence="jensen_shannon"
        )
        signals, rows = str(folder / "signals"), str(folder / "mixture.safetensors")
        replace(TrainRequest.load(path), teacher=str(teacher), signals=signals, mixture=rows).save(path)
        return path

    whole, halted = trained(request("whole")), trained(request("halted"), killed_at=2)
    assert len(records_of(halted)) < len(records_of(whole))
    trained(halted / "request.json")
    assert [record["loss"] for record in records_of(halted)] == [record["loss"] for record in records_of(whole)]
    assert checkpoint.digest(halted / "student") == checkpoint.digest(whole / "student")


@pytest.mark.parametrize("kind", ["tied", "in several files", "with a bias"])
def test_an_output_layer_is_read_alone(kind: str, tiny_checkpoint: Path, teacher: Path, tmp_path: Path) -> None:
    small: dict[str, Any] = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    if kind == "tied":
        LlamaForCausalLM(LlamaConfig(**small, tie_word_embeddings=True)).save_pretrained(tmp_path)
    elif kind == "with a bias":
        model = PhiForCausalLM(PhiConfig(**small))
        torch.nn.init.normal_(model.lm_head.bias)
        model.save_pretrained(tmp_path)
    else:
        load_model(teacher, "cpu").save_pretrained(tmp_path, max_shard_size="40KB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 1
    load_tokenizer(tiny_checkpoint).save_pretrained(tmp_path)
    weight, bias = output_layer(tmp_path)
    layer = load_model(tmp_path, "cpu").get_output_embeddings()
    assert torch.equal(weight, layer.weight)
    assert (bias is None) == (layer.bias is None)
    assert bias is None or torch.equal(bias, layer.bias)


def test_other_weights_than_those_that_were_asked_are_refused(teacher: Path) -> None:
    check_weights(str(teacher), "")
    check_weights(str(teacher), checkpoint.digest(teacher))
    with pytest.raises(InputError, match=r"has the digest .* but the signals are from abcdef"):
        check_weights(str(teacher), "abcdef" * 10)


def test_a_teacher_with_fewer_tokens_than_the_student_is_refused(teacher: Path) -> None:
    with pytest.raises(InputError, match="has 336 tokens, the student's 400"):
        beside(str(teacher), CPU, 400, live=True)


def test_what_a_teacher_cannot_give_is_said(
    tiny_checkpoint: Path,
    teacher: Path,
    asked: Callable[[str], Path],
    one_process: None,
    request_in: Any,
    tmp_path: Path,
) -> None:
    student, head = load_model(tiny_checkpoint, "cpu"), beside(str(teacher), CPU, 320, live=False)
    with pytest.raises(InputError, match=r"set training\.live_teacher"):
        Objective(student, TrainingSettings(hidden_weight=1), "packed")
    with pytest.raises(InputError, match="signals hold the last layer's states alone"):
        Objective(student, TrainingSettings(hidden_weight=1, layers="1:2"), "packed", head)
    with pytest.raises(InputError, match="need the teacher's output layer"):
        one_step(student, asked("hidden:bf16"), TrainingSettings(), None)
    with pytest.raises(InputError, match="attention maps are not stored"):
        Objective(student, TrainingSettings(attention_weight=1), "packed", head)
    with pytest.raises(InputError, match="hidden states are not among top-k signals"):
        one_step(student, asked("topk:4"), TrainingSettings(hidden_weight=1), head)
    with pytest.raises(InputError, match="the request names no teacher"):
        train(TrainRequest.load(request_in(tmp_path, live_teacher=True)))
    assert json.loads((tmp_path / "request.json").read_text())["teacher"] == ""


def test_attention_maps_that_dropout_took_a_part_of_are_refused(tiny_checkpoint: Path) -> None:
    student = load_model(tiny_checkpoint, "cpu")
    student.set_attn_implementation("eager")
    require_whole_maps(student)
    for block in student.model.layers:
        block.self_attn.attention_dropout = 0.1
    with pytest.raises(InputError, match="drops part of its attention maps while it learns"):
        require_whole_maps(student)
    assert not student.training
