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
from typing import Any, NamedTuple

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
LINE = 96  # tokens in a line of packed rows
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
    a prompt token. Its gradients have a norm of 2 to 3: clipping them to 1 would cost it points.
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
        order = _batches(len(rows), batch_size, np.random.default_rng(seed))
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


class _Packed(NamedTuple):
    """Rows packed into R lines of W tokens."""

    ids: torch.Tensor  # (R, W)
    places: torch.Tensor  # (R, W) of each token in its own row
    mask: torch.Tensor  # (R, 1, W, W) true where a token may look
    weights: torch.Tensor  # (R, W) of each token's own loss; zero for padding and for a row's first


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
        ids, places, mask, weights = _packed(rows, starts, next(order), pad)
        states = model.model(  # (R, W, D)
            input_ids=ids, position_ids=places, attention_mask=mask, use_cache=False
        ).last_hidden_state
        used = weights[:, 1:] > 0  # position t predicts token t + 1
        losses = cross_entropy(model.lm_head(states[:, :-1][used]), ids[:, 1:][used], reduction="none")
        loss = (losses * weights[:, 1:][used]).sum()
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


def _packed(rows: list[NDArray[np.int32]], starts: list[int], batch: list[int], pad: int) -> _Packed:
    """Return the rows of a batch side by side in few lines (R, W): nearly no padding, and a random order stays one."""
    lines: list[list[int]] = []
    room: list[int] = []
    for row in sorted(batch, key=lambda row: -len(rows[row])):
        fits = next((at for at, left in enumerate(room) if left >= len(rows[row])), None)
        if fits is None:
            fits = len(lines)
            lines.append([])
            room.append(max(LINE, len(rows[row])))
        lines[fits].append(row)
        room[fits] -= len(rows[row])
    width = max(sum(len(rows[row]) for row in line) for line in lines)
    ids, owner, places = (np.full((len(lines), width), value, np.int64) for value in (pad, -1, 0))
    is_prompt, is_answer = np.zeros((2, len(lines), width), np.float32)
    for at, line in enumerate(lines):
        begin = 0
        for row in line:
            end, answer = begin + len(rows[row]), begin + starts[row]
            ids[at, begin:end], owner[at, begin:end], places[at, begin:end] = rows[row], row, np.arange(end - begin)
            is_prompt[at, begin + 1 : answer] = 1  # a row's first token is given, not predicted
            is_answer[at, answer:end] = 1
            begin = end
    weights = is_answer / len(batch) + PROMPT_WEIGHT * is_prompt / max(1.0, is_prompt.sum())
    mask = np.tril(owner[:, None, :, None] == owner[:, None, None, :])  # a row sees itself alone, and backwards
    return _Packed(*(torch.from_numpy(part) for part in (ids, places, mask, weights)))


def _batches(rows: int, size: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """Yield batches of row numbers without end; all rows once before any row twice, but for an incomplete rest."""
    size = min(size, rows)
    while True:
        order = rng.permutation(rows).tolist()
        yield from (order[at : at + size] for at in range(0, rows - size + 1, size))


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
        initializer_range=0.05,  # for widths of 100 to 200; the usual 0.02 learns these tasks at half the speed
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
