"""8-bit weights: a graph that does what the checkpoint does, measured when it is packed, refused when it is far off."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from deployments.bento import onnx_graph
from deployments.bento.build import Bento
from deployments.bento.quantised import Measured, measure
from deployments.bento.serving.engines import OnnxEngine, TorchEngine
from deployments.bento.smoke import smoke_test
from deployments.errors import Failure, InputError
from deployments.settings import PackagingSettings

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

BuildBento = Callable[..., Bento]
SHAPE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,
    "bos_token_id": None,
    "eos_token_id": None,
}
STRETCHED = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
STUDENTS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**SHAPE, num_key_value_heads=2),
    "llama, tied, biased, stretched": lambda: transformers.LlamaConfig(
        **SHAPE,
        num_key_value_heads=4,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
        rope_parameters=STRETCHED,
    ),
    "mistral": lambda: transformers.MistralConfig(**SHAPE, num_key_value_heads=2, sliding_window=None),
    "qwen2": lambda: transformers.Qwen2Config(**SHAPE, num_key_value_heads=1),
    "qwen3": lambda: transformers.Qwen3Config(**SHAPE, num_key_value_heads=2, head_dim=24),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=300, n_positions=64, n_embd=64, n_layer=3, n_head=4, initializer_range=0.15, eos_token_id=None
    ),
}


def _both(folder: Path, config: Any) -> tuple[TorchEngine, OnnxEngine]:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():  # biases and norms that do something
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 1 if parameter.mean() > 0.5 else 0, 0.1)
    model.save_pretrained(folder)
    onnx_graph.check(json.loads((folder / "config.json").read_text()), "it")
    onnx_graph.write(folder, folder / "model.onnx", vocabulary=290, longest=64)
    return TorchEngine(folder, 290), OnnxEngine(folder / "model.onnx")


def _forced(engine: Any, tokens: Any, mask: Any, steps: Any) -> tuple[Any, Any]:
    """Return best tokens and log-probabilities (B, S) of prompts that are continued by `steps` (B, S - 1)."""
    found = []
    best, logprobs, past = engine.forward(tokens, mask, None)
    found.append((best, logprobs))
    for column in steps.T:
        mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
        best, logprobs, past = engine.forward(np.ascontiguousarray(column[:, None]), mask, past)
        found.append((best, logprobs))
    return tuple(np.stack(part, 1) for part in zip(*found, strict=True))


@pytest.mark.parametrize("config", STUDENTS.values(), ids=STUDENTS)
def test_the_graph_computes_what_the_checkpoint_does_up_to_8_bits(config: Callable[[], Any], tmp_path: Path) -> None:
    own, small = _both(tmp_path, config())
    rng = np.random.default_rng(0)
    tokens, steps = rng.integers(0, 290, (6, 20)), rng.integers(0, 290, (6, 10))
    mask = (np.arange(20) >= np.array([[0], [3], [19], [7], [0], [12]])).astype(np.int64)
    (best, logprobs), (best_8, logprobs_8) = (_forced(engine, tokens, mask, steps) for engine in (own, small))
    assert np.abs(logprobs - logprobs_8).max() < 0.35
    assert np.abs(logprobs - logprobs_8).mean() < 0.06
    assert (best == best_8).mean() > 0.85
    assert max(best.max(), best_8.max()) < 290


def test_a_row_is_answered_alike_whatever_else_is_in_its_batch(tmp_path: Path) -> None:
    _, small = _both(tmp_path, STUDENTS["llama"]())
    rng = np.random.default_rng(1)
    tokens, mask = rng.integers(0, 290, (8, 20)), np.ones((8, 20), np.int64)
    mask[3, :9] = 0
    _, together, past = small.forward(tokens, mask, None)
    _, alone, past_alone = small.forward(tokens[3:4, 9:], mask[3:4, 9:], None)
    assert alone[0] == pytest.approx(together[3], abs=1e-5)
    merged = small.merge([(past, [5, 3]), (past_alone, [0])], 20)
    steps, seen = np.array([[7], [7], [7]]), np.ones((3, 21), np.int64)
    seen[1:, :9] = 0
    _, after, _ = small.forward(steps, seen, merged)
    assert after[1] == pytest.approx(after[2], abs=1e-5)


CONFIGS = {
    "a family that is not known": ({"model_type": "mamba"}, "family 'mamba'"),
    "a sliding window": ({"model_type": "mistral", "sliding_window": 4096}, "sliding window"),
    "a position encoding by length": (
        {"model_type": "llama", "rope_parameters": {"rope_type": "dynamic"}},
        "position encoding 'dynamic'",
    ),
    "an activation": ({"model_type": "llama", "hidden_act": "xielu"}, "activation 'xielu'"),
}


@pytest.mark.parametrize(("config", "reason"), CONFIGS.values(), ids=CONFIGS)
def test_a_student_of_which_no_graph_can_be_written_is_refused_by_name_before_the_build(
    build_bento: BuildBento, student: Path, tmp_path: Path, config: dict[str, Any], reason: str
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in student.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=reason):
        build_bento(tmp_path / "store", checkpoint=other, settings=PackagingSettings(format="onnx-int8"), prompts=["a"])
    assert not (tmp_path / "store").exists()


def test_without_the_extra_packages_the_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("deployments.settings.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs onnx and onnxruntime: pip install 'redistill\[onnx\]'"):
        PackagingSettings(format="onnx-int8")
    PackagingSettings(format="torch")


@pytest.fixture(scope="module")
def packed(build_bento: BuildBento, tmp_path_factory: pytest.TempPathFactory, prompts: list[str]) -> Bento:
    settings = PackagingSettings(format="onnx-int8", min_agreement=0.5)
    return build_bento(tmp_path_factory.mktemp("int8"), settings=settings, prompts=prompts * 2)


@pytest.mark.integration
def test_an_int8_bento_is_measured_holds_no_other_weights_and_answers_as_was_measured(
    packed: Bento, prompts: list[str]
) -> None:
    measured = packed.measured
    assert measured is not None
    assert measured.prompts == 2 * len(prompts)
    assert 0.5 <= measured.same_tokens <= 1
    assert measured.decode_speedup > 0
    names = {path.name for path in (packed.path / "src" / "checkpoint").iterdir()}
    assert "model.onnx" in names
    assert not [name for name in names if name.endswith(".safetensors")]
    pins = (packed.path / "env" / "python" / "requirements.txt").read_text()
    assert "onnxruntime==" in pins
    assert "torch==" not in pins
    everything = b"".join(path.read_bytes() for path in packed.path.rglob("*") if path.is_file())
    assert not [prompt for prompt in prompts[:4] if prompt.strip().encode() in everything]
    found = smoke_test(packed, prompts * 2, measured.answers, model_version="7", timeout=600)
    assert found.answers == measured.answers


@pytest.mark.integration
def test_8_bits_that_agree_too_seldom_stop_the_build_with_the_share_and_the_setting(
    build_bento: BuildBento, tmp_path: Path, prompts: list[str]
) -> None:
    settings = PackagingSettings(format="onnx-int8", min_agreement=1)
    with pytest.raises(Failure, match=r"% of the checkpoint's tokens.*less than packaging\.min_agreement = 1"):
        build_bento(tmp_path, settings=settings, prompts=prompts)
    assert not (tmp_path / "bentos").exists()


def test_measuring_counts_equal_answers_and_tokens(student: Path, tmp_path: Path, prompts: list[str]) -> None:
    limits = {"max_prompt_tokens": 24, "max_new_tokens": 12}
    onnx_graph.write(student, tmp_path / "model.onnx", vocabulary=320, longest=36)
    found = measure(student, tmp_path, prompts, **limits)
    assert Measured.from_json(found.to_json()) == found
    assert "answers" not in found.numbers()
    assert found.same_answers <= found.same_tokens
    with pytest.raises(InputError, match="there are none"):
        measure(student, tmp_path, [], **limits)
