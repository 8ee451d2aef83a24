"""The loss of a pass is that of plain torch on each row's logits, whatever makes the logits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from transformers import AutoModelForCausalLM

from distill import mixture
from distill.batches import Batches
from distill.batching.attention import layout_of
from distill.errors import InputError
from distill.loss.inside import output_of
from distill.loss.objective import Objective
from distill.settings import TrainingSettings
from distill.signals import SignalStore

SMALL: dict[str, Any] = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}
MODELS: dict[str, Callable[[], Any]] = {
    "llama, tied": lambda: transformers.LlamaConfig(**SMALL, **HEADS, tie_word_embeddings=True),
    "qwen3": lambda: transformers.Qwen3Config(**SMALL, **HEADS, head_dim=8),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=320, n_positions=256, n_embd=32, n_layer=2, n_head=4),
    "phi, a bias in the head": lambda: transformers.PhiConfig(**SMALL, **HEADS),
    "gemma2, capped logits": lambda: transformers.Gemma2Config(
        **SMALL, **HEADS, head_dim=8, sliding_window=6, query_pre_attn_scalar=8, final_logit_softcapping=3.0
    ),
    "cohere, scaled logits": lambda: transformers.CohereConfig(**SMALL, **HEADS, logit_scale=0.25),
    "granite, scaled logits": lambda: transformers.GraniteConfig(**SMALL, **HEADS, logits_scaling=4.0),
    "mamba": lambda: transformers.MambaConfig(
        vocab_size=320, hidden_size=32, state_size=4, num_hidden_layers=2, time_step_rank=4, pad_token_id=0
    ),
}
SETTINGS = TrainingSettings(cross_entropy_weight=0.3, prompt_weight=0.2)


def plain_loss(student: Any, rows: mixture.Mixture, store: SignalStore, chosen: list[int]) -> torch.Tensor:
    """The loss, row by row, from the model's own logits."""
    kl, answers, asked, counts = [], [], [], torch.zeros(2)
    for row in chosen:
        prompt, signal = torch.from_numpy(rows.prompt(row)).long(), store.get(rows.keys[row].tobytes())
        answer = torch.tensor(signal.answer).long()
        logits = student(input_ids=torch.cat([prompt, answer])[None], use_cache=False).logits[0]
        of_prompt, of_answer = logits[: len(prompt) - 1], logits[len(prompt) - 1 : -1]
        kept_p, tail = torch.tensor(signal.logprobs).to(logits.dtype), torch.tensor(signal.tail).to(logits.dtype)
        kept_q = of_answer.log_softmax(-1).gather(-1, torch.tensor(signal.ids).long())
        rest = (1 - kept_q.exp().sum(-1)).log()
        p = torch.cat([kept_p.exp(), tail[:, None]], -1)
        p = p / p.sum(-1, keepdim=True)  # what float16 took is given back
        kl.append((p * (p.log() - torch.cat([kept_q, rest[:, None]], -1))).sum())
        answers.append(F.cross_entropy(of_answer, answer, reduction="sum"))
        asked.append(F.cross_entropy(of_prompt, prompt[1:], reduction="sum"))
        counts += torch.tensor([len(answer), len(prompt) - 1])
    weights = SETTINGS.cross_entropy_weight, SETTINGS.prompt_weight
    return (sum(kl) + weights[0] * sum(answers)) / counts[0] + weights[1] * sum(asked) / counts[1]


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradient_are_those_of_the_models_own_logits(name: str, made_up_mixture: Path) -> None:
    torch.manual_seed(0)
    student = AutoModelForCausalLM.from_config(MODELS[name]()).double().train()
    if student.get_output_embeddings().bias is not None:
        torch.nn.init.normal_(student.get_output_embeddings().bias)  # it is zero at first
    rows, store = mixture.load(made_up_mixture / "mixture.safetensors"), SignalStore(made_up_mixture / "signals")
    layout, _ = layout_of(student, SETTINGS)
    batches = Batches(rows, store, tokens_per_step=300, tokens_per_pass=150, layout=layout, width=32, pad=0, seed=0)
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    step = batches.step(0)
    assert len(step.passes) > 1
    objective, losses, parts = Objective(student, SETTINGS, layout), [], []
    for batch in step.passes:
        loss, part = objective(batch)
        loss.backward()
        losses.append(loss.item())
        parts.append(part.sum().item())
    gradients = {name: weight.grad.clone() for name, weight in student.named_parameters() if weight.grad is not None}
    student.zero_grad()
    expected = plain_loss(student, rows, store, step.rows)
    expected.backward()
    assert sum(losses) == pytest.approx(expected.item(), rel=1e-6)
    assert sum(parts) == pytest.approx(expected.item(), rel=1e-6)
    for weight_name, weight in student.named_parameters():
        if weight.grad is not None:
            # Norms and rotations are made in float32 by the models themselves.
            assert (gradients[weight_name] - weight.grad).norm() <= 1e-5 * weight.grad.norm(), weight_name


def test_logits_that_are_no_product_with_the_head_are_refused() -> None:
    class Odd(transformers.LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            made = super().forward(*args, **kwargs)
            made.logits = made.logits.square()
            return made

    with pytest.raises(InputError, match="student Odd: its logits are not"):
        output_of(Odd(transformers.LlamaConfig(**SMALL, **HEADS)))


def test_a_model_whose_class_does_not_tell_its_transformer_from_its_head_is_refused_by_name() -> None:
    experts = {"intermediate_size_mlp": 48, "num_local_experts": 2, "head_dim": 8}
    model = AutoModelForCausalLM.from_config(transformers.Llama4TextConfig(**SMALL, **HEADS, **experts))
    with pytest.raises(InputError, match=r"Llama4ForCausalLM does not say.*choose another model"):
        output_of(model)


def test_caps_and_scales_are_found() -> None:
    def output(name: str) -> tuple[float, float | None]:
        torch.manual_seed(0)
        return output_of(AutoModelForCausalLM.from_config(MODELS[name]()))

    assert output("llama, tied") == (1.0, None)
    assert output("gemma2, capped logits") == (1.0, 3.0)
    assert output("cohere, scaled logits") == (pytest.approx(0.25), None)
