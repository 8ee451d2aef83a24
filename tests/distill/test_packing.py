"""Rows that share a sequence: which do, and that a model sees them as if each were alone."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from distill.batches import collate
from distill.batching.attention import layout_of
from distill.batching.packing import Layout, dealt, passes
from distill.mixture import Mixture
from distill.settings import TrainingSettings
from distill.signals import SignalStore, key
from distill.teachers.protocol import Signal

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)
SMALL: dict[str, Any] = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**SMALL, **HEADS),
    "qwen3": lambda: transformers.Qwen3Config(**SMALL, **HEADS),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=97, n_positions=64, n_embd=32, n_layer=2, n_head=4),
    "mistral, a window of 6": lambda: transformers.MistralConfig(**SMALL, **HEADS, sliding_window=6),
    "gemma2": lambda: transformers.Gemma2Config(**SMALL, **HEADS, sliding_window=6, query_pre_attn_scalar=8),
    "mamba": lambda: transformers.MambaConfig(
        vocab_size=97, hidden_size=32, state_size=4, num_hidden_layers=2, time_step_rank=4, pad_token_id=0
    ),
}


def model(name: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(MODELS[name]()).eval()


@pytest.mark.parametrize("name", [name for name in MODELS if name != "mamba"])
def test_packed_logits_are_those_of_each_row_alone(name: str, tmp_path: Any) -> None:
    student = model(name)
    assert layout_of(student, TrainingSettings()) == ("packed", "")
    random = np.random.default_rng(0)
    prompts = [random.integers(0, 97, n).astype(np.int32) for n in (9, 4, 13, 1, 2)]
    answers = [random.integers(0, 97, n).astype(np.int32) for n in (3, 5, 1, 2, 6)]
    store, keys = SignalStore(tmp_path), [key("teacher", "topk:1", "greedy", prompt) for prompt in prompts]
    store.put(
        [
            (k, len(p), Signal(a, a[:, None], np.full((len(a), 1), -0.7, np.float16), np.full(len(a), 0.5, np.float32)))
            for k, p, a in zip(keys, prompts, answers, strict=True)
        ]
    )
    offsets = np.cumsum([0, *map(len, prompts)])
    mixture = Mixture(
        np.concatenate(prompts),
        offsets,
        np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32),
        np.ones(5, np.float32),
    )
    batch = collate(mixture, store, [[2, 0, 3], [1, 4]], pad=0)
    with torch.no_grad():
        packed = student(
            input_ids=torch.from_numpy(batch.input_ids),
            position_ids=torch.from_numpy(batch.position_ids),
            use_cache=False,
        ).logits.flatten(0, 1)
        at = 0
        for row in (2, 0, 3, 1, 4):
            alone = np.concatenate([prompts[row], answers[row]])
            logits = student(input_ids=torch.from_numpy(alone)[None].long()).logits[0]
            n = len(answers[row])
            there = packed[torch.from_numpy(batch.answer_at[at : at + n])]
            torch.testing.assert_close(there, logits[len(prompts[row]) - 1 : -1], rtol=1e-6, atol=1e-6)
            assert batch.answer[at : at + n].tolist() == answers[row].tolist()
            at += n
    assert at == len(batch.answer)


def test_a_model_that_carries_a_state_from_row_to_row_is_padded_and_says_why() -> None:
    layout, reason = layout_of(model("mamba"), TrainingSettings())
    assert layout == "padded"
    assert "MambaForCausalLM" in reason
    assert layout_of(model("llama"), TrainingSettings(packing=False)) == ("padded", "training.packing is false")


@given(lengths=LENGTHS, tokens=st.integers(1, 200), layout=st.sampled_from(["padded", "packed", "flat"]))
def test_every_row_is_in_one_bin_and_no_pass_is_too_large(lengths: list[int], tokens: int, layout: Layout) -> None:
    rows = list(range(100, 100 + len(lengths)))
    made = passes(rows, lengths, tokens, layout, width=32)
    assert sorted(row for bins in made for members in bins for row in members) == rows
    for bins in made:
        sizes = [sum(lengths[row - 100] for row in members) for members in bins]
        assert len(bins) * max(sizes) <= tokens or sum(map(len, bins)) == 1
        assert layout != "padded" or all(len(members) == 1 for members in bins)
        assert layout != "flat" or len(bins) == 1


def test_packing_leaves_less_padding() -> None:
    lengths = np.random.default_rng(0).integers(10, 80, 300).tolist()

    def positions(layout: Layout) -> int:
        made = passes(range(300), lengths, 2048, layout, width=64)
        return sum(len(bins) * max(sum(lengths[row] for row in members) for members in bins) for bins in made)

    assert positions("packed") < 1.1 * sum(lengths) < positions("padded")


@given(lengths=LENGTHS, processes=st.integers(1, 5))
def test_the_processes_share_the_tokens(lengths: list[int], processes: int) -> None:
    hands = dealt(range(len(lengths)), lengths, processes)
    assert sorted(row for hand in hands for row in hand) == list(range(len(lengths)))
    tokens = [sum(lengths[row] for row in hand) for hand in hands]
    assert max(tokens) - min(tokens) <= max(lengths)
