"""Makes the demos' models: a teacher trained on labelled rows, and the random base a first student starts from.

Both are Llamas small enough for a CPU, saved as Hugging Face directories with tokenizer, chat template and generation
config. A folder is written beside its place and renamed; one that already holds the same recipe is left as it is.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from distill.errors import Failure, InputError
from distill.prompts import Tokenizer, encode

Progress = Callable[[int, int], None]  # (steps done, steps in all)

RECIPE = "recipe.json"  # in the folder: what it was made from; a folder without it is not taken for finished
MAX_POSITIONS = 512
WARMUP_STEPS = 50
POOL_BATCHES = 4  # rows are sorted by length within pools of so many batches: less padding, still random
MAX_GRAD_NORM = 100.0
PROMPT_WEIGHT = 0.2
LOG_EVERY = 10


def make_student(folder: Path, tokenizer: Tokenizer, width: int, layers: int, heads: int, seed: int) -> Path:
    """Save a Llama with random weights, from which a first champion can be trained; return the folder."""
    recipe = {"made": "student", "width": width, "layers": layers, "heads": heads, "seed": seed}
    digest = _digest(recipe, tokenizer, [], [])
    if not is_complete(folder, digest):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _save(folder, _llama(tokenizer, width, layers, heads), tokenizer, recipe, digest)
    return folder


def train_teacher(
    folder: Path,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    width: int,
    layers: int,
    heads: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    progress: Progress | None = None,
) -> Path:
    """Train a Llama to give each prompt its answer and save it; return the folder, at once if it is already there.

    Loss: cross entropy of the answer (its tokens' sum, the closing eos included, a row's mean) plus 0.2 times that of
    a prompt token. Against a mean over the answer's tokens, most of which are easy, it gains 5 points on the titles.
    AdamW, linear warm-up, cosine to a tenth. Same inputs, seed and machine: same weights. Raises InputError when
    prompts and answers do not match in number or there are none, Failure when the loss is no longer a number.
    """
    if len(prompts) != len(answers) or not prompts:
        raise InputError(f"a teacher learns from pairs: got {len(prompts)} prompts and {len(answers)} answers")
    shape = {"width": width, "layers": layers, "heads": heads}
    recipe = {"made": "teacher", **shape, "steps": steps, "batch": batch_size, "lr": learning_rate, "seed": seed}
    digest = _digest(recipe, tokenizer, prompts, answers)
    if is_complete(folder, digest):
        return folder
    rows, starts = _tokenise(tokenizer, prompts, answers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _llama(tokenizer, width, layers, heads)
        order = _batches([len(row) for row in rows], batch_size, np.random.default_rng(seed))
        _fit(model, rows, starts, order, steps, learning_rate, tokenizer.pad_token_id, progress)
    _save(folder, model, tokenizer, recipe, digest)
    return folder


def is_complete(folder: Path, digest: str) -> bool:
    """Whether the folder holds the finished model of this recipe."""
    try:
        found = json.loads((folder / RECIPE).read_text())
    except FileNotFoundError:
        return False
    except ValueError:
        return False  # not ours or damaged: it is made again
    return isinstance(found, dict) and found.get("digest") == digest


# --------------------------------------------------------------------------------------------------------------
# The training loop
# --------------------------------------------------------------------------------------------------------------


def _fit(
    model: Any,
    rows: list[NDArray[np.int32]],
    starts: list[int],
    order: Iterator[list[int]],
    steps: int,
    learning_rate: float,
    pad: int,
    progress: Progress | None,
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    model.train()
    for step in range(1, steps + 1):
        ids, weights = _collate(rows, starts, next(order), pad)  # (B, L), (B, L - 1)
        # Padding is on the right and attention looks to the left: no mask is needed, and the fast kernel is taken.
        states = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state  # (B, L - 1, D)
        used = weights > 0
        losses = cross_entropy(model.lm_head(states[used]), ids[:, 1:][used], reduction="none")
        loss = (losses * weights[used]).sum()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % LOG_EVERY == 0 or step == steps:
            if not math.isfinite(loss.item()):
                raise Failure(f"teacher: the loss at step {step} is {loss.item()}: lower the learning rate")
            if progress:
                progress(step, steps)
    model.eval()


def _rate(step: int, steps: int) -> float:
    warmup = min(WARMUP_STEPS, max(1, steps // 4))
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _collate(
    rows: list[NDArray[np.int32]], starts: list[int], batch: list[int], pad: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids (B, L) and the weight (B, L - 1) of each next token's loss; the weights of padding are zero."""
    length = max(len(rows[row]) for row in batch)
    ids = np.full((len(batch), length), pad, np.int64)
    is_prompt, is_answer = np.zeros((2, len(batch), length), np.float32)
    for at, row in enumerate(batch):
        ids[at, : len(rows[row])] = rows[row]
        is_prompt[at, 1 : starts[row]] = 1  # a row's first token is given, not predicted
        is_answer[at, starts[row] : len(rows[row])] = 1
    weights = is_answer / len(batch) + PROMPT_WEIGHT * is_prompt / max(1.0, is_prompt.sum())
    return torch.from_numpy(ids), torch.from_numpy(weights[:, 1:])


def _batches(lengths: Sequence[int], size: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """Yield batches of row numbers without end; all rows once before any row twice, but for an incomplete rest."""
    size = min(size, len(lengths))
    while True:
        shuffled = rng.permutation(len(lengths))
        batches = []
        for pool in np.split(shuffled, range(size * POOL_BATCHES, len(shuffled), size * POOL_BATCHES)):
            by_length = sorted(pool.tolist(), key=lambda row: lengths[row])
            batches += [by_length[at : at + size] for at in range(0, len(by_length) - size + 1, size)]
        for at in rng.permutation(len(batches)):
            yield batches[at]


# --------------------------------------------------------------------------------------------------------------
# Around it
# --------------------------------------------------------------------------------------------------------------


def _tokenise(
    tokenizer: Tokenizer, prompts: Sequence[str], answers: Sequence[str]
) -> tuple[list[NDArray[np.int32]], list[int]]:
    """Return each row's prompt and answer tokens in one array, and where its answer begins."""
    spelt = tokenizer(list(answers), add_special_tokens=False)["input_ids"]
    ends = [np.asarray([*answer, tokenizer.eos_token_id], np.int32) for answer in spelt]
    heads = encode(tokenizer, prompts, MAX_POSITIONS - max(map(len, ends))).ids
    rows = [np.concatenate(pair) for pair in zip(heads, ends, strict=True)]
    return rows, [len(head) for head in heads]


def _llama(tokenizer: Tokenizer, width: int, layers: int, heads: int) -> Any:
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        **special,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=False, **special)
    return model


def _digest(recipe: dict[str, Any], tokenizer: Tokenizer, prompts: Sequence[str], answers: Sequence[str]) -> str:
    parts = [recipe, tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template, list(prompts), list(answers)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _save(folder: Path, model: Any, tokenizer: Tokenizer, recipe: dict[str, Any], digest: str) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        made.chmod(0o755)  # mkdtemp's 0700 would shut out a server that runs as another user
        with _without_progress_bar():
            model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        (made / RECIPE).write_text(json.dumps({"digest": digest, "recipe": recipe}, indent=2) + "\n")
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    """Keep transformers from drawing a bar of its own for each file that it writes."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()
