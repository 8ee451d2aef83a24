"""What whole training steps are measured on: models with random weights, rows of random tokens, made-up signals."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from distill import mixture
from distill.batches import Batches
from distill.batching.packing import Layout
from distill.settings import TrainingSettings
from distill.signals import SignalStore, key
from distill.store.encodings import parse, picked
from distill.teachers.protocol import AnySignal, HiddenSignal, Signal

Row: TypeAlias = tuple[NDArray[np.int32], NDArray[np.int32]]  # prompt, answer

PROMPT = 8  # tokens: nearly all tokens are learned from the teacher
TOP_K = 64
WIDTH = 1024  # of made-up states
SIGNALS = {"cached": "top-64", "live": "top-1"}  # beside a live teacher nothing but answers is read


@dataclass(frozen=True)
class Size:
    """Models of a benchmark: width, width of the inner layer, blocks; heads are 64 wide, output layers untied."""

    vocabulary: int = 32_000
    student: tuple[int, int, int] = (384, 1024, 4)  # 31.7M
    teacher: tuple[int, int, int] = (512, 1360, 6)  # 51.6M


def make(folder: Path, lengths: Sequence[int], size: Size) -> None:
    """Write student, teacher and rows of these lengths [tokens] into a folder."""
    for seed, (name, shape) in enumerate({"student": size.student, "teacher": size.teacher}.items()):
        torch.manual_seed(seed)
        model_of(size.vocabulary, *shape).save_pretrained(folder / name)
        tokenizer_of(size.vocabulary).save_pretrained(folder / name)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(4, size.vocabulary, PROMPT, dtype=np.int32) for _ in lengths]
    answers = np.asarray(lengths) - PROMPT
    whole = made(f"topk:{TOP_K}", int(answers.sum()), 0, size.vocabulary)
    assert isinstance(whole, Signal)
    ends = np.cumsum(answers)
    parts = [picked(whole, np.arange(end - count, end)) for end, count in zip(ends, answers, strict=True)]
    for name, k in (("top-64", TOP_K), ("top-1", 1)):
        keys = [key("teacher", f"topk:{k}", "greedy", prompt) for prompt in prompts]
        cut = [_likeliest(part, k) for part in parts]
        SignalStore(folder / name / "signals").put([(a, PROMPT, b) for a, b in zip(keys, cut, strict=True)])
        digests = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32)
        mixture.save(folder / name / "mixture.safetensors", prompts, digests)


def rows_of(folder: Path) -> list[Row]:
    """Return prompt and answer of every row, in order."""
    given, store = mixture.load(folder / "top-1" / "mixture.safetensors"), SignalStore(folder / "top-1" / "signals")
    return [(given.prompt(row), store.get(key.tobytes()).answer) for row, key in enumerate(given.keys)]


def batches_of(folder: Path, signals: str, settings: TrainingSettings, layout: Layout, width: int) -> Batches:
    """Return the trainer's batches of all rows."""
    return Batches(
        mixture.load(folder / signals / "mixture.safetensors"),
        SignalStore(folder / signals / "signals"),
        tokens_per_step=settings.tokens_per_step,
        tokens_per_pass=settings.tokens_per_pass,
        layout=layout,
        width=width,
        pad=0,
        seed=settings.seed,
    )


def made(name: str, tokens: int, seed: int, vocabulary: int = 2**18) -> AnySignal:
    """Return random tokens of a format: k different ones each, or states of 64 strong directions and noise."""
    rng = np.random.default_rng(seed)
    answer = rng.integers(0, vocabulary, tokens, dtype=np.int32)
    kind, k = parse(name)
    if kind != "topk":
        directions = np.random.default_rng(7).normal(size=(64, WIDTH)).astype(np.float32)
        states = rng.normal(size=(tokens, 64)).astype(np.float32) @ directions
        states += rng.normal(size=states.shape).astype(np.float32)
        return HiddenSignal(answer, states, np.full(tokens, -0.5, np.float16), name)
    logits = -np.sort(-rng.normal(0, 3, (tokens, 2 * k)).astype(np.float32), axis=1)
    logprobs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    ids = ((answer[:, None] + np.arange(k) * (vocabulary // k)) % vocabulary).astype(np.int32)
    tail = np.exp(logprobs[:, k:]).sum(1)
    return Signal(ids[:, 0].copy(), ids, logprobs[:, :k].astype(np.float16), tail)


def _likeliest(signal: Any, k: int) -> Signal:
    rest = np.exp(signal.logprobs[:, k:].astype(np.float32)).sum(1)
    return Signal(signal.answer, signal.ids[:, :k], signal.logprobs[:, :k], signal.tail + rest)


def model_of(vocabulary: int, width: int, inner: int, blocks: int) -> Any:
    """Return a Llama with random weights; heads are 64 wide, the output layer is untied."""
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = max(1, width // 64)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config)


def tokenizer_of(vocabulary: int) -> Any:
    """Return a tokenizer of words w3, w4, ... after <pad>, <eos> and <unk>."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", "<unk>", *(f"w{number}" for number in range(3, vocabulary))]
    backend = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=2048
    )
