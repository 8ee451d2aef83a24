"""The hot loop: a student learns the teacher's signals, on one process or many.

Every step takes some `tokens_per_step` tokens (distill/batching/order.py), dealt over the processes and packed into
forward passes (distill/batches.py). Its loss is a mean over all the tokens of that global batch
(distill/loss/objective.py).
"""

import math
import os
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
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

from distill import mixture
from distill.batches import Batch, Batches
from distill.batching.ahead import made_ahead
from distill.batching.attention import layout_of
from distill.batching.packing import Layout
from distill.divergence import check_kernel
from distill.errors import InputError
from distill.loss.inside import require_whole_maps
from distill.loss.objective import Objective
from distill.models import export, load_model
from distill.request import TrainRequest
from distill.settings import TrainingSettings
from distill.signals import SignalStore
from distill.teachers.beside import Beside, beside, check_weights
from distill.training import adapters, belonging, group, guards, outcome, places, states, validation
from distill.training.lock import alone_in
from distill.training.progress import Progress
from distill.training.randomness import seed_step
from distill.training.sharding import clip, device_of, mesh_of, reduce_gradients, shard
from distill.training.steplog import PARTS, StepLog

# Frozen weights, those under adapters, are in the checkpoint that the student starts from.
_LEARNING = StateDictOptions(ignore_frozen_params=True, strict=False)


class TrainState(Stateful):
    """What a training state holds: sharded weights and moments."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer

    def state_dict(self) -> dict[str, Any]:
        """Return the state as DCP wants it."""
        model, optimizer = get_state_dict(self.model, self.optimizer, options=_LEARNING)
        return {"model": model, "optimizer": optimizer}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state that DCP read."""
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state_dict["model"],
            optim_state_dict=state_dict["optimizer"],
            options=_LEARNING,
        )


def train(request: TrainRequest) -> None:
    """Train until the last step, or until validation says so, and export `output/student`.

    Goes on from the latest training state; a request for a part of a training ends with that part's last step. In a
    process group of the caller's it is collective, and under torch elastic the processes find each other; without
    either this process trains alone (distill/training/group.py). Raises Failure when a step would spoil the student
    (distill/training/guards.py), and InputError for what cannot be used: a missing file, an output that cannot be
    written or has another training, a student that cannot be trained.
    """
    places.check(request)
    if request.settings.mode == "on_policy" and request.part is None:
        raise InputError(
            "training.mode on_policy is a training in rounds: give the request to distill.rounds.loop.learn"
        )
    with group.joined(request.settings.device), alone_in(request.states / "checkpoints"):
        _train(request)


def _train(request: TrainRequest) -> None:
    settings, output, rank = request.settings, Path(request.output), dist.get_rank()
    belonging.claim(request)
    device = device_of(settings.device)
    check_kernel(settings.loss_kernel, device)
    mesh = mesh_of(device, settings.replicas)
    student = load_model(request.start, device=str(device)).float().train()  # master weights and moments in fp32
    teacher = _teacher(request, student, device)
    layout, unpacked = layout_of(student, settings, teacher.model if teacher else None)
    batches = _batches(request, layout, student)
    if settings.lora_rank:
        adapters.add(student, settings)
    own_divergence = request.part.own_divergence if request.part else None
    model = shard(Objective(student, settings, layout, teacher, own_divergence), student, mesh, settings)
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        learning, lr=request.learning_rate, betas=(0.9, 0.95), weight_decay=settings.weight_decay, fused=True
    )
    state, checkpoints = {"train": TrainState(model, optimizer)}, request.states / "checkpoints"
    states.sweep(checkpoints)
    gone = states.gone(checkpoints)
    progress = states.restore(checkpoints, state) or Progress()
    first, last, steps = _span(request, batches, progress)
    held = np.flatnonzero(batches.order.left_out).tolist()
    if progress.step == first:
        progress.other_rows()
    until = progress.step if progress.stopped(settings.patience) else last
    shows = os.environ.get("LOCAL_RANK", "0") == "0"  # the first of each machine shows how far it is
    log = StepLog(request.states / "metrics.jsonl" if rank == 0 else None, progress.step) if shows else None
    if rank == 0:
        for line in (*_resumed(checkpoints, gone, progress.step, steps), *_notes(batches, settings, unpacked)):
            print(line, flush=True)
    # ---------------------------------------------------------------------------------------------------------------
    with closing(made_ahead(batches.step, range(progress.step - first, until - first))) as ahead:
        for step in ahead:
            began = time.perf_counter()
            seed_step(settings.seed, progress.step, rank)
            sums = _gradients(model, step.passes, device)
            norm = clip(learning, settings.max_grad_norm, mesh)
            losses = _named(sums, settings, aligned=batches.mixture.alignment is not None)
            guards.check(progress, losses["loss"], norm, settings, step.rows, batches.mixture, output, checkpoints)
            rate = _learning_rate(progress.step, steps, settings.warmup_steps, request.learning_rate)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
            progress.stepped(losses["loss"], norm, settings.spike_steps)
            if held and (progress.step % settings.validation_steps == 0 or progress.step == steps):
                losses["validation_loss"] = validation.loss(model, batches, held)
                guards.check_validation(losses["validation_loss"], held)
                progress.evaluated(losses["validation_loss"])
            if log is not None:
                log.write(
                    {
                        "step": progress.step,
                        "steps": steps,
                        **losses,
                        "grad_norm": norm,
                        "learning_rate": rate,
                        **step.counts,
                        "seconds": time.perf_counter() - began,
                    }
                )
            ends = progress.step == last or progress.stopped(settings.patience)
            if ends or progress.step % settings.checkpoint_steps == 0 or progress.step == progress.best_step:
                states.save(checkpoints, state, progress, keep=settings.keep_checkpoints)
            if ends:
                break
    # ---------------------------------------------------------------------------------------------------------------
    goes_on = progress.step == last < steps and not progress.stopped(settings.patience)
    if goes_on or not held:  # validation has said nothing of the last step
        ended = batches.order.rows(progress.step - 1 - first)
        guards.check_student(validation.loss(model, batches, ended), progress, settings)
    elif progress.best_step != progress.step:
        states.restore(checkpoints, state, best=True)
    if rank == 0:
        outcome.write(output, progress, steps, batches.order, first=first, goes_on=goes_on)
    _export(student, request)
    dist.barrier()


def _gradients(model: nn.Module, passes: Sequence[Batch], device: torch.device) -> Tensor:
    """Add up the gradients of a step's passes; returns the parts of the global batch's loss, shape (parts,)."""
    sums = torch.zeros(len(PARTS), dtype=torch.float64, device=device)
    for number, batch in enumerate(passes, start=1):
        reduce_gradients(model, number == len(passes))  # once a step
        loss, parts = model(batch)  # this pass's part of the global mean
        (loss * dist.get_world_size()).backward()  # FSDP averages over the processes, we want their sum
        sums += parts
    dist.all_reduce(sums)
    return sums


def _span(request: TrainRequest, batches: Batches, progress: Progress) -> tuple[int, int, int]:
    """Return (steps before those of the request, its last step, steps of the whole training)."""
    part = request.part
    if part is None:
        steps = batches.order.steps(request.epochs)
        return 0, steps, steps
    if not part.first <= progress.step <= part.last:
        raise InputError(
            f"{str(request.states / 'checkpoints')!r} has the training state after step {progress.step}, but this part "
            f"of the training goes from step {part.first} to {part.last}: train the parts in their order, or delete "
            f"{str(request.states)!r} to start anew"
        )
    return part.first, part.last, part.steps


def _export(student: Any, request: TrainRequest) -> None:
    """Write the student's checkpoint, with adapters added into its layers. Collective."""
    weights = get_model_state_dict(student, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.get_rank():  # only the first process was given the tensors
        return
    if request.settings.lora_rank:
        student = adapters.merged(weights, request.start, request.settings)
        weights = student.state_dict()
    export(student, weights, Path(request.start), Path(request.output) / "student")


def _teacher(request: TrainRequest, student: Any, device: torch.device) -> Beside | None:
    """Return what the request names of the teacher; its weights are checked once on each machine."""
    settings = request.settings
    if not request.teacher:
        return None
    if os.environ.get("LOCAL_RANK", "0") == "0":
        check_weights(request.teacher, request.teacher_sha256)
    vocabulary = len(student.get_output_embeddings().weight)
    found = beside(request.teacher, device, vocabulary, live=settings.live_teacher)
    if settings.attention_weight and found.model is not None:
        for model in (student, found.model):
            model.set_attn_implementation("eager")  # the only one that gives its maps
        require_whole_maps(student)
    return found


def _batches(request: TrainRequest, layout: Layout, student: Any) -> Batches:
    settings, pad = request.settings, student.generation_config.pad_token_id
    rows = mixture.load(Path(request.mixture))
    return Batches(
        rows,
        SignalStore(request.signals),
        tokens_per_step=settings.tokens_per_step,
        tokens_per_pass=settings.tokens_per_pass,
        layout=layout,
        width=student.get_input_embeddings().embedding_dim,
        pad=0 if pad is None else pad,
        # Each round has an order of its own: its share of a pass is not over the same rows every time.
        seed=settings.seed + (request.part.first if request.part else 0),
        left_out=validation.rows_of(rows, settings),
        rank=dist.get_rank(),
        processes=dist.get_world_size(),
    )


def _notes(batches: Batches, settings: TrainingSettings, unpacked: str) -> list[str]:
    """Return what a user has to know of how rows are laid out."""
    notes = [f"rows are padded, not packed: {unpacked}"] if unpacked else []
    if batches.order.longer:
        notes.append(
            f"{batches.order.longer} of {len(batches.lengths)} rows are longer than training.tokens_per_step = "
            f"{settings.tokens_per_step}: each is a step of its own"
        )
    return notes


def _resumed(checkpoints: Path, gone: list[int], step: int, steps: int) -> list[str]:
    """Return after which step a training goes on, and what became of its states of the steps `gone`."""
    told = [f"resumed after step {step} of {steps}"] if step else []
    if gone:
        names = ", ".join(map(states.name_of, gone))
        goes_on = f"goes on after step {step}" if step else "begins anew, at step 1"
        told.append(
            f"{str(checkpoints / states.LATEST)!r} names {names}, which somebody has removed: the training {goes_on}"
        )
    return told


def _named(sums: Tensor, settings: TrainingSettings, *, aligned: bool) -> dict[str, float]:
    """Return the losses of a step by name [nats/token]; what has no weight was not worked out, and is left out."""
    chosen = settings.cross_entropy_weight, settings.prompt_weight, settings.hidden_weight, settings.attention_weight
    weighted = zip(PARTS, sums.tolist(), (1, *chosen, settings.uld_weight * aligned), strict=True)
    return {"loss": float(sums.sum()), **{name: part / weight for name, part, weight in weighted if weight}}


def _learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Linear warm-up, then cosine down to a tenth of the peak."""
    warmup = min(warmup, steps // 5)
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (0.55 + 0.45 * math.cos(math.pi * done))
