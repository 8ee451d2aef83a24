"""LoRA: what learns, and that the merged student is the one that learned."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from distill.errors import InputError
from distill.models import load_model
from distill.settings import TrainingSettings
from distill.training import adapters

SETTINGS = TrainingSettings(lora_rank=4, lora_alpha=16.0)
SHAPE: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 48}


@pytest.fixture(params=["llama", "llama, tied", "gpt2"])
def start(request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint: linear layers as transformers has them, the output layer its own or tied, or all transposed."""
    if request.param == "llama":
        return tiny_checkpoint
    torch.manual_seed(0)
    config = (
        transformers.LlamaConfig(vocab_size=64, tie_word_embeddings=True, **SHAPE)
        if request.param == "llama, tied"
        else transformers.GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4)
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    return tmp_path


def test_the_merged_student_answers_as_the_one_with_adapters(start: Path) -> None:
    student = load_model(start, "cpu")
    base = student(input_ids=torch.arange(20)[None]).logits
    adapters.add(student, SETTINGS)
    learning = [name for name, weight in student.named_parameters() if weight.requires_grad]
    assert learning
    assert all(".lora_A." in name or ".lora_B." in name for name in learning)
    with torch.no_grad():
        for name, weight in student.named_parameters():
            if ".lora_B." in name:  # zero at first
                weight.normal_(std=0.03)
        learned = student(input_ids=torch.arange(20)[None]).logits
        merged = adapters.merged(student.state_dict(), str(start), SETTINGS)
        assert set(merged.state_dict()) == set(load_model(start, "cpu").state_dict())
        torch.testing.assert_close(merged(input_ids=torch.arange(20)[None]).logits, learned, rtol=1e-4, atol=1e-4)
    assert (learned - base).abs().max() > 0.01


def test_every_process_begins_with_the_same_adapters(tiny_checkpoint: Path) -> None:
    students = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        students.append(load_model(tiny_checkpoint, "cpu"))
        adapters.add(students[-1], SETTINGS)
    for one, other in zip(*(student.parameters() for student in students), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("targets", "said"),
    [("q_proj,nothing_there", None), ("nothing_there", "nothing_there"), ("lm_head", "the output layer")],
)
def test_targets_that_cannot_learn_are_named(targets: str, said: str | None, tiny_checkpoint: Path) -> None:
    settings = TrainingSettings(lora_rank=2, lora_targets=targets)
    with pytest.raises(InputError, match=r"training\.lora_targets") as error:
        adapters.add(load_model(tiny_checkpoint, "cpu"), settings)
    assert (said or "nothing_there") in str(error.value)
