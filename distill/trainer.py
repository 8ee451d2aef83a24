"""The hot loop: a student learns the teacher's signals, on one process or many (FSDP2).

Every step takes `batch_size` rows. Its loss is a mean over all the tokens of that global batch, whatever the number
of processes and micro-batches:

    loss = (KL + w_ce * CE) / answer tokens + w_prompt * CE_prompt / prompt tokens
"""

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from distill import batches, checkpoint, divergence, mixture
from distill.batches import Batch
from distill.errors import Failure
from distill.models import export, load_model, resolve_device
from distill.request import PROGRESS, TrainRequest
from distill.signals import SignalStore


class Objective(nn.Module):
    """The student with its losses, so that both lie inside one sharded forward."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, batch: Batch, device: torch.device, weights: tuple[float, float, float]) -> tuple[Tensor, Tensor]:
        """Return the loss of a micro-batch, and (KL, cross entropy, prompt cross entropy) as they enter it, (3,).

        weights: what one token's KL, cross entropy and prompt cross entropy count in the loss.
        """
        student: Any = self.student
        head = _head(student)

        def tensor(values: Any) -> Tensor:
            return torch.from_numpy(values).to(device)

        def all_at(weight: float, count: int) -> Tensor:
            return torch.full((count,), weight, device=device)

        output = student.base_model(
            input_ids=tensor(batch.input_ids), attention_mask=tensor(batch.attention_mask), use_cache=False
        )
        hidden = output.last_hidden_state.flatten(0, 1)  # (B * L, D)
        answers = divergence.losses(
            hidden[tensor(batch.answer_at)],
            head,
            divergence.TopK(tensor(batch.ids), tensor(batch.logprobs), tensor(batch.tail)),
            divergence_weights=all_at(weights[0], batch.answer_tokens),
            targets=tensor(batch.answer),
            target_weights=all_at(weights[1], batch.answer_tokens),
        )
        labels = tensor(batch.prompt_labels).flatten()  # (B * L,)
        at = labels != batches.IGNORED
        prompts = divergence.losses(
            hidden[at], head, None, targets=labels[at], target_weights=all_at(weights[2], batch.prompt_tokens)
        )
        parts = torch.stack([answers.divergence, answers.cross_entropy, prompts.cross_entropy])
        return answers.total + prompts.total, parts


def _head(student: Any) -> divergence.Head:
    """Return the output layer; logits are capped where the model's own forward does so (Gemma 2)."""
    layer = student.get_output_embeddings()
    softcap = getattr(student.config.get_text_config(), "final_logit_softcapping", None)
    return divergence.Head(layer.weight, getattr(layer, "bias", None), softcap)


class TrainState(Stateful):
    """What a checkpoint holds: sharded weights and moments, and the number of finished steps."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer, self.step = model, optimizer, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state as DCP wants it."""
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state that DCP read."""
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state_dict["model"],
            optim_state_dict=state_dict["optimizer"],
        )
        self.step = state_dict["step"]


def train(request: TrainRequest) -> None:
    """Train until the last step and export `output/student`; goes on from the latest checkpoint. Collective.

    Raises Failure when the loss is no longer finite.
    """
    settings, output = request.settings, Path(request.output)
    rank, world = dist.get_rank(), dist.get_world_size()
    device = _device(settings.device)
    rows, signals = mixture.load(Path(request.mixture)), SignalStore(request.signals)
    model, pad = _sharded(request.start, device, world)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=request.learning_rate, betas=(0.9, 0.95), weight_decay=settings.weight_decay, fused=True
    )
    steps = batches.step_count(len(rows), request.epochs, settings.batch_size)
    order = batches.Order(np.diff(rows.offsets), settings.batch_size, settings.seed)
    state = TrainState(model, optimizer)
    checkpoints = output / "checkpoints"
    if checkpoint.restore(checkpoints, {"train": state}) and rank == 0:
        print(f"resumed after step {state.step} of {steps}", flush=True)
    log = _Log(output / "metrics.jsonl", state.step) if rank == 0 else None
    # ---------------------------------------------------------------------------------------------------------------
    while state.step < steps:
        began = time.perf_counter()
        chosen = order.rows(state.step)
        mine = [
            batches.collate(rows, signals, part, pad) for part in _split(chosen[rank::world], settings.micro_batch_size)
        ]
        answer_tokens, prompt_tokens = _over_all_processes(mine, device)
        weights = (
            1 / answer_tokens,
            settings.cross_entropy_weight / answer_tokens,
            settings.prompt_weight / prompt_tokens,
        )
        parts = torch.zeros(3, dtype=torch.float64, device=device)
        for batch, last in _marked_last(mine):
            model.set_requires_gradient_sync(last)  # gradients are reduced once a step
            loss, of_batch = model(batch, device, weights)
            (loss * world).backward()  # FSDP averages over the processes: undo it, the sum is a global mean already
            parts += of_batch
        norm = _full(nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm))
        rate = _learning_rate(state.step, steps, settings.warmup_steps, request.learning_rate)
        for group in optimizer.param_groups:
            group["lr"] = rate
        dist.all_reduce(parts)
        total = float(parts.sum())
        kl, ce, prompt = (
            float(part) / weight / count if weight else 0.0
            for part, weight, count in zip(parts, weights, (answer_tokens, answer_tokens, prompt_tokens), strict=True)
        )
        if not math.isfinite(total) or not math.isfinite(float(norm)):
            raise Failure(
                f"the loss is {total} and its gradient norm {float(norm)} at step {state.step + 1}: "
                "lower training.learning_rate"
            )
        optimizer.step()
        optimizer.zero_grad()
        state.step += 1
        if log is not None:
            log.write(
                {
                    "step": state.step,
                    "steps": steps,
                    "loss": total,
                    "kl": kl,
                    "cross_entropy": ce,
                    "prompt_cross_entropy": prompt,
                    "grad_norm": float(norm),
                    "learning_rate": rate,
                    "answer_tokens": answer_tokens,
                    "prompt_tokens": prompt_tokens,
                    "seconds": time.perf_counter() - began,
                }
            )
        if state.step % settings.checkpoint_steps == 0 or state.step == steps:
            checkpoint.save(checkpoints, {"train": state}, state.step, rank=rank)
    # ---------------------------------------------------------------------------------------------------------------
    student = model.student
    tensors = get_model_state_dict(student, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:  # only the first process was given the tensors
        export(student, tensors, Path(request.start), output / "student")
    dist.barrier()


def _sharded(start: str, device: torch.device, world: int) -> tuple[Any, int]:
    student = load_model(start, device=str(device)).float().train()  # master weights and moments in fp32
    mesh = init_device_mesh(device.type, (world,), mesh_dim_names=("data",))
    lists = [module for module in student.base_model.modules() if isinstance(module, nn.ModuleList)]
    for layer in max(lists, key=len):  # the transformer's blocks, whatever the architecture calls them
        fully_shard(layer, mesh=mesh)
    model = fully_shard(Objective(student), mesh=mesh)
    if not isinstance(model, FSDPModule):
        raise Failure(f"{type(student).__name__} could not be sharded")
    pad = student.generation_config.pad_token_id
    return model, 0 if pad is None else int(pad)


def _device(name: str) -> torch.device:
    if resolve_device(name).type == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def _split(rows: list[int], size: int) -> list[list[int]]:
    return [rows[at : at + size] for at in range(0, len(rows), size)]


def _marked_last(mine: list[Batch]) -> Iterator[tuple[Batch, bool]]:
    return ((batch, at == len(mine) - 1) for at, batch in enumerate(mine))


def _over_all_processes(mine: list[Batch], device: torch.device) -> tuple[int, int]:
    counts = torch.tensor(
        [sum(b.answer_tokens for b in mine), sum(b.prompt_tokens for b in mine)],
        dtype=torch.int64,
        device=device,
    )
    dist.all_reduce(counts)
    return max(1, int(counts[0])), max(1, int(counts[1]))


def _full(norm: Any) -> Tensor:
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # type: ignore[no-any-return]


def _learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Linear warm-up, then cosine down to a tenth of the peak."""
    warmup = min(warmup, steps // 5)
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (0.55 + 0.45 * math.cos(math.pi * done))


class _Log:
    """metrics.jsonl: one record a step, with the load of the machine; records after the resumed step are dropped."""

    def __init__(self, path: Path, finished: int) -> None:
        kept = path.read_text().splitlines(keepends=True)[:finished] if path.is_file() else []
        partial = path.with_name(path.name + ".partial")  # a kill here must not lose what is kept
        partial.write_text("".join(kept))
        os.replace(partial, path)
        self._file = path.open("a")
        self._process = psutil.Process()
        psutil.cpu_percent()

    def write(self, record: dict[str, Any]) -> None:
        record = {
            **record,
            "time": time.time(),
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_megabytes": psutil.virtual_memory().used / 2**20,
            "system/process_memory_megabytes": self._process.memory_info().rss / 2**20,
        }
        line = json.dumps(record)
        self._file.write(line + "\n")
        self._file.flush()
        print(PROGRESS + line, flush=True)
