"""One contender of a whole training step: forward, loss, backward, clip, AdamW, on rows that lie in a folder.

    python -m benchmarks.steppers CONTENDER FOLDER ROWS

Takes ROWS rows of `benchmarks.material` a step, in their order, whenever it is asked (benchmarks.turns), and says the
loss: a mean over the step's answer tokens.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import count, cycle
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore

from benchmarks.losses import BETA, of_logits
from benchmarks.material import SIGNALS, Row, batches_of, rows_of
from benchmarks.turns import serve
from distill.batches import Step
from distill.batching.ahead import made_ahead
from distill.batching.attention import layout_of
from distill.loss.objective import Objective
from distill.models import load_model
from distill.settings import TrainingSettings
from distill.teachers.beside import beside
from distill.training.sharding import clip, device_of, mesh_of, reduce_gradients, shard
from distill.training.steplog import PARTS

RATE, BETAS, DECAY, NORM = 1e-4, (0.9, 0.95), 0.01, 1.0
Stepper = Callable[[Path, int], Iterator[float]]


def settings_of(**changes: Any) -> TrainingSettings:
    """Return settings under which the divergence is all of the loss, as it is with the others."""
    given = {"cross_entropy_weight": 0.0, "prompt_weight": 0.0, "device": "cpu", "max_grad_norm": NORM, **changes}
    return TrainingSettings.model_validate(given)


def groups(rows: int, each: int) -> list[list[int]]:
    """Return the rows of every step."""
    return [list(range(first, first + each)) for first in range(0, rows - each + 1, each)]


def ours(folder: Path, each: int, *, live: bool, divergence: str = "forward_kl") -> Iterator[float]:
    """Step as distill.trainer does in one process, batches made ahead."""
    settings = settings_of(live_teacher=live, divergence=divergence, divergence_beta=BETA)
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    device = device_of(settings.device)
    mesh = mesh_of(device, settings.replicas)
    student = load_model(folder / "student", str(device)).float().train()
    vocabulary, width = student.get_input_embeddings().weight.shape
    teacher = beside(str(folder / "teacher"), device, vocabulary, live=True) if live else None
    layout, _ = layout_of(student, settings, teacher.model if teacher else None)
    batches = batches_of(folder, SIGNALS["live" if live else "cached"], settings, layout, width)
    model = shard(Objective(student, settings, layout, teacher), student, mesh, settings)
    learning = list(model.parameters())
    optimizer = torch.optim.AdamW(learning, lr=RATE, betas=BETAS, weight_decay=DECAY, fused=True)
    steps = groups(len(batches.mixture), each)

    def made(number: int) -> Step:
        rows = steps[number % len(steps)]
        return batches.part(number, rows, rows)

    with closing(made_ahead(made, count())) as ahead:
        for step in ahead:
            sums = torch.zeros(len(PARTS), dtype=torch.float64)
            for number, batch in enumerate(step.passes, start=1):
                reduce_gradients(model, number == len(step.passes))
                loss, parts = model(batch)
                loss.backward()
                sums += parts
            clip(learning, settings.max_grad_norm, mesh)
            dist.all_reduce(sums)
            optimizer.step()
            optimizer.zero_grad()
            yield float(sums.sum())


def padded(rows: list[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """Return token ids, attention mask and where the next token is an answer's, each (B, L), padded on the right."""
    lengths = [len(prompt) + len(answer) for prompt, answer in rows]
    ids = torch.zeros(len(rows), max(lengths), dtype=torch.int64)
    mask, answered = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for at, (prompt, answer) in enumerate(rows):
        ids[at, : len(prompt)], ids[at, len(prompt) : lengths[at]] = torch.tensor(prompt), torch.tensor(answer)
        mask[at, : lengths[at]] = 1
        answered[at, len(prompt) - 1 : lengths[at] - 1] = True
    return ids, mask, answered


def plain(folder: Path, each: int) -> Iterator[float]:
    """Step with plain torch: padded rows, a live teacher, the forward KL over whole logits of the answers."""
    student, teacher = (load_model(folder / name, "cpu").float() for name in ("student", "teacher"))
    student.train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=RATE, betas=BETAS, weight_decay=DECAY, fused=True)
    loss_of, rows = of_logits("forward_kl"), rows_of(folder)
    for group in cycle(groups(len(rows), each)):
        ids, mask, answered = padded([rows[row] for row in group])
        with torch.no_grad():
            theirs = teacher(input_ids=ids, attention_mask=mask, use_cache=False).logits[answered]
        loss = loss_of(student(input_ids=ids, attention_mask=mask, use_cache=False).logits[answered], theirs)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(student.parameters(), NORM)
        optimizer.step()
        optimizer.zero_grad()
        yield float(loss.detach())


def trl_gkd(folder: Path, each: int, *, beta: float) -> Iterator[float]:
    """Step with TRL's GKDTrainer: its collator, training_step and optimizer, and a clip by its accelerator.

    Off its defaults: no generation (lmbda 0), no gradient checkpointing, which would cost it a forward pass more, and
    float32 as all do here. beta 0 is the forward KL, 0.5 (its default) the Jensen-Shannon divergence.
    """
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    student, teacher = (load_model(folder / name, "cpu").float() for name in ("student", "teacher"))
    rows = [
        {
            "prompt": "",
            "input_ids": [*prompt.tolist(), *answer.tolist()],
            "completion_mask": [0] * len(prompt) + [1] * len(answer),
        }
        for prompt, answer in rows_of(folder)
    ]
    config = GKDConfig(
        output_dir=str(folder / "trl"), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[],
        lmbda=0.0, beta=beta, max_length=2048, per_device_train_batch_size=each, learning_rate=RATE,
        adam_beta1=BETAS[0], adam_beta2=BETAS[1], weight_decay=DECAY, max_grad_norm=NORM,
    )  # fmt: skip
    trainer = GKDTrainer(
        student,
        teacher,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder / "student"),
    )
    optimizer = trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    for group in cycle(groups(len(rows), each)):
        drawn = iter([trainer.data_collator([rows[row] for row in group])])
        (inputs,), tokens = trainer.get_batch_samples(drawn, 1, torch.device("cpu"))
        loss = trainer.training_step(student, inputs, tokens)
        trainer.accelerator.clip_grad_norm_(student.parameters(), NORM)
        optimizer.step()
        optimizer.zero_grad()
        yield float(loss)


def delivery(folder: Path, each: int) -> Iterator[float]:
    """Make the batches of all steps from a store just opened: checksums, reading, unpacking; yields how many."""
    while True:
        batches = batches_of(folder, SIGNALS["cached"], settings_of(), "packed", 384)
        steps = groups(len(batches.mixture), each)
        for number, rows in enumerate(steps):
            batches.part(number, rows, rows)
        yield len(steps)


CONTENDERS: dict[str, Stepper] = {
    "ours, live": partial(ours, live=True),
    "ours, live, JSD": partial(ours, live=True, divergence="jensen_shannon"),
    "ours, top 64": partial(ours, live=False),
    "plain torch": plain,
    "TRL GKD": partial(trl_gkd, beta=0.0),
    "TRL GKD, JSD": partial(trl_gkd, beta=BETA),
}


def main() -> None:
    """Be a contender."""
    name, folder, each = sys.argv[1:4]
    serve({**CONTENDERS, "delivery": delivery}[name](Path(folder), int(each)))


if __name__ == "__main__":
    main()
