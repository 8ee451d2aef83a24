"""The whole step of a student on one device: forward, loss against a teacher's final states, backward, AdamW."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.losses import Loss


class Size(NamedTuple):
    """What is stepped; the defaults are those of a Qwen3 of 0.6B parameters under a teacher of 4B."""

    vocabulary: int = 151_936
    width: int = 1024
    layers: int = 28
    heads: int = 16
    head_width: int = 128
    inner: int = 3072
    teacher_width: int = 2560
    rows: int = 8
    tokens: int = 1024  # of a row

    @property
    def flops(self) -> float:
        """Model FLOP of a step: 6 a weight and token, attention halved by its mask, and the teacher's output layer."""
        attention = 2 * self.width * self.head_width * (self.heads + self.heads // 2)  # query, output; key, value
        weights = self.layers * (attention + 3 * self.width * self.inner) + self.vocabulary * self.width
        masked = 6 * self.layers * self.heads * self.head_width * self.tokens
        return self.rows * self.tokens * (6 * weights + masked + 2 * self.vocabulary * self.teacher_width)


def stepper(loss: Loss, size: Size, device: str, dtype: torch.dtype) -> Callable[[], float]:
    """Return a function that takes a step of a student with random weights on random tokens, and returns its loss."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads // 2,
        head_dim=size.head_width,
        intermediate_size=size.inner,
        tie_word_embeddings=True,
    )
    model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    ids = torch.randint(size.vocabulary, (size.rows, size.tokens), device=device)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    states = normal(size.rows * size.tokens, size.teacher_width)
    other = normal(size.vocabulary, size.teacher_width) / size.teacher_width**0.5

    def once() -> float:
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
        found = loss(hidden, model.lm_head.weight, states, other)
        found.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        return float(found.detach())

    return once
