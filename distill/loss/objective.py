"""The student with its loss, so that both lie inside one sharded forward.

    loss = sum over answer tokens of share * (D + w_ce * CE + w_hidden * H + w_uld * U) + w_prompt * sum over prompt
           tokens of share * CE + w_attention * sum over positions that predict an answer token of share * A

A token's share is its part of the mean over all tokens of its kind in the global batch (distill/batches.py): summed
over passes and processes the loss is that mean, however the batch was packed, split or dealt out. D is a divergence
(distill/divergence.py) or left out, H and A compare states and attention maps of some layers
(distill/loss/intermediate.py), U the sorted probabilities of a teacher with another tokenizer
(distill/loss/aligned.py). On tokens that the student itself has said there is no CE, and D may be another divergence.
"""

from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distill import divergence
from distill.alignment.translated import Translated
from distill.batches import Batch
from distill.batching.packing import Layout
from distill.divergence import Aligned, Head, Hidden, Losses, Teacher, TopK
from distill.errors import InputError
from distill.loss import intermediate
from distill.loss.inside import Inside, blocks_of, output_of, run
from distill.settings import Divergence, TrainingSettings
from distill.teachers.beside import Beside
from distill.teachers.protocol import HiddenSignal, Signal

Kind: TypeAlias = Divergence | Literal["none"]


class Objective(nn.Module):
    """Runs a pass; returns its part of the loss, and what that is made of.

    teacher: needed for signals that are final states, and for a live teacher. Raises InputError for layers that are
    not there, and for tokens that the student does not have.
    """

    def __init__(
        self,
        student: nn.Module,
        settings: TrainingSettings,
        layout: Layout,
        teacher: Beside | None = None,
        own_divergence: Divergence | None = None,
    ) -> None:
        super().__init__()
        self.student, self.settings, self.layout, self.teacher = student, settings, layout, teacher
        self.own_divergence = own_divergence or settings.divergence
        self.output = output_of(student)
        self.pairs, self.projections = _inside(student, settings, teacher)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return (loss, a scalar; its parts as PARTS names them, each with its weight, (len(PARTS),) float64)."""
        student: Any = self.student
        layer, settings = student.get_output_embeddings(), self.settings
        _check_tokens(batch, len(student.get_input_embeddings().weight), len(layer.weight))
        head = Head(layer.weight, layer.bias, self.output.softcap)

        def tensor(values: Any) -> Tensor:
            return torch.from_numpy(values).to(layer.weight.device, non_blocking=True)

        inputs = {
            "input_ids": tensor(batch.input_ids),
            # From positions alone the model knows where a row begins.
            **(
                {"attention_mask": tensor(batch.filled)}
                if self.layout == "padded"
                else {"position_ids": tensor(batch.position_ids)}
            ),
        }
        seen = run(
            student,
            self.output,
            inputs,
            [own for own, _ in self.pairs],
            attention=bool(settings.attention_weight),
        )
        states, at = seen.final.flatten(0, 1), tensor(batch.answer_at)
        theirs = self._live(inputs)
        answer = self._answers(batch, states[at], head, self._teacher(batch, theirs, at, tensor), tensor)
        prompt = self._prompt(batch, states, head, tensor)
        hidden, attention = self._intermediate(batch, seen, theirs, at, tensor)
        parts = [answer.divergence, answer.cross_entropy, prompt.cross_entropy, hidden.double(), attention.double()]
        parts.append(answer.uld)
        return answer.total + prompt.total + hidden + attention, torch.stack(parts).detach()

    def _answers(self, batch: Batch, states: Tensor, head: Head, teacher: Teacher | None, tensor: Any) -> Losses:
        """Return the losses on answers: the teacher's, and the student's own."""
        settings, share, answer = self.settings, tensor(batch.answer_share), tensor(batch.answer)

        def compared(states: Tensor, teacher: Teacher | None, rows: Any, kind: Kind, entropy: float) -> Losses:
            return divergence.losses(
                states,
                head,
                teacher,
                divergence_weights=share[rows],
                # What has no weight is not worked out; a pass of padding alone has no teacher.
                targets=answer[rows] if entropy or teacher is None else None,
                target_weights=entropy * share[rows],
                kind="forward_kl" if kind == "none" else kind,  # there is no teacher then
                beta=settings.divergence_beta,
                temperature=settings.temperature,
                kernel=settings.loss_kernel,
            )

        entropy, found = settings.cross_entropy_weight, []
        if not batch.own.any():
            return compared(states, teacher, slice(None), settings.divergence, entropy)
        for said, kind, weight in ((~batch.own, settings.divergence, entropy), (batch.own, self.own_divergence, 0.0)):
            if said.any():
                rows = tensor(np.flatnonzero(said))
                found.append(compared(states[rows], _some(teacher, rows), rows, kind, weight))
        return Losses(*(sum(parts[1:], parts[0]) for parts in zip(*found, strict=True)))

    def _prompt(self, batch: Batch, states: Tensor, head: Head, tensor: Any) -> Losses:
        """Return the cross entropy of the prompts' tokens."""
        weight = self.settings.prompt_weight
        if not weight:
            return Losses(*states.new_zeros(4))
        return divergence.losses(
            states[tensor(batch.prompt_at)],
            head,
            None,
            targets=tensor(batch.prompt),
            target_weights=weight * tensor(batch.prompt_share),
        )

    @torch.no_grad()
    def _live(self, inputs: dict[str, Tensor]) -> Inside | None:
        """Return what a live teacher sees in the student's batch."""
        teacher = self.teacher
        if teacher is None or teacher.model is None:
            return None
        layers = [other for _, other in self.pairs]
        return run(teacher.model, teacher.output, inputs, layers, attention=bool(self.settings.attention_weight))

    def _teacher(self, batch: Batch, theirs: Inside | None, at: Tensor, tensor: Any) -> Teacher | None:
        """Return the teacher's distribution over the answer tokens; None where a pass has none, or none is learned."""
        if batch.signal is None or self.settings.divergence == "none":
            return None
        if theirs is not None and self.teacher is not None:
            return Hidden(theirs.final.flatten(0, 1)[at], self.teacher.head)
        if isinstance(batch.signal, Translated):
            return self._aligned(batch, batch.signal, tensor)
        if isinstance(batch.signal, Signal):
            kept = batch.signal
            return TopK(tensor(kept.ids.astype(np.int64)), tensor(kept.logprobs.astype(np.float32)), tensor(kept.tail))
        if not isinstance(batch.signal, HiddenSignal):
            raise InputError("signals that are answers alone have no distribution: set training.divergence to none")
        if self.teacher is None:
            raise InputError(f"signals {batch.signal.format!r} need the teacher's output layer: name its checkpoint")
        return Hidden(tensor(batch.signal.states), self.teacher.head)

    def _aligned(self, batch: Batch, said: Translated, tensor: Any) -> Aligned:
        """Return what a teacher with another tokenizer says of the answer tokens."""
        layer: Any = self.student.get_output_embeddings()  # type: ignore[operator]
        shared = torch.zeros(len(layer.weight), dtype=torch.bool, device=layer.weight.device)
        names = "ids", "logprobs", "live", "tail", "matched", "ranked", "ranks", "rest"
        return Aligned(
            **{name: tensor(getattr(said, name)) for name in names},
            answer=tensor(batch.answer),
            shared=shared.index_fill_(0, tensor(said.shared), True),
            weights=self.settings.uld_weight * tensor(batch.answer_share),
        )

    def _intermediate(
        self, batch: Batch, seen: Inside, theirs: Inside | None, at: Tensor, tensor: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the terms on states and on attention maps with their weights, scalars."""
        settings, share = self.settings, tensor(batch.answer_share)
        hidden = attention = seen.final.new_zeros((), dtype=torch.float32)
        if settings.hidden_weight:
            own = self.projections([part.flatten(0, 1)[at] for part in seen.hidden])
            if theirs is not None:
                other = [part.flatten(0, 1)[at] for part in theirs.hidden]
            elif isinstance(batch.signal, HiddenSignal):
                other = [tensor(batch.signal.states)]
            elif batch.signal is not None:
                raise InputError(
                    "training.hidden_weight: hidden states are not among top-k signals; set training.live_teacher to "
                    "true, or teacher.signals_format to hidden:bf16"
                )
            else:  # a pass without answers
                other = [part.detach() for part in own]
            hidden = settings.hidden_weight * intermediate.hidden_loss(own, other, share)
        if settings.attention_weight and theirs is not None:
            weights = torch.zeros(batch.input_ids.size, device=share.device).index_put((at,), share)
            attention = settings.attention_weight * intermediate.attention_loss(
                seen.attention, theirs.attention, weights.view(batch.input_ids.shape)
            )
        return hidden, attention


def _some(teacher: Teacher | None, rows: Tensor) -> Teacher | None:
    """Return what the teacher says of some rows."""
    if isinstance(teacher, TopK):
        return TopK(teacher.ids[rows], teacher.logprobs[rows], teacher.tail[rows])
    if isinstance(teacher, Hidden):
        return teacher._replace(states=teacher.states[rows])
    return None if teacher is None else teacher.part(rows)


def _check_tokens(batch: Batch, read: int, said: int) -> None:
    """Raise InputError for token ids beyond a vocabulary; on a GPU they would end the process with a bare assertion."""
    kept: NDArray[Any] = batch.answer
    if isinstance(batch.signal, Translated):
        kept = batch.signal.shared
    elif isinstance(batch.signal, Signal):
        kept = batch.signal.ids
    for name, ids, vocabulary in (
        ("prompts and answers have", batch.input_ids, read),
        ("teacher signals have", kept, said),
    ):
        if ids.size and (largest := int(ids.max())) >= vocabulary:
            raise InputError(
                f"the mixture's {name} token id {largest}, and the student has {vocabulary} tokens: they were made "
                "with another tokenizer; make the mixture and its signals again with this student's"
            )


def _inside(
    student: Any, settings: TrainingSettings, teacher: Beside | None
) -> tuple[list[tuple[int, int]], nn.Module]:
    """Return the pairs of layers that are compared, and what brings the student's states to the teacher's width."""
    if not (settings.hidden_weight or settings.attention_weight):
        return [], nn.Identity()
    if teacher is None:
        raise InputError(
            "training.hidden_weight and training.attention_weight compare the student's layers with the teacher's: set "
            "training.live_teacher, or for the last layer's states teacher.signals_format hidden:bf16"
        )
    layers = len(blocks_of(student))
    if teacher.model is None and settings.attention_weight:
        raise InputError(
            "attention maps are not stored: set training.live_teacher to true, or training.attention_weight to 0"
        )
    if teacher.model is None:
        pairs = intermediate.layer_map(settings.layers, layers, layers)
        if pairs != [(layers, layers)]:
            raise InputError(
                f"training.layers {settings.layers!r}: signals hold the last layer's states alone; set it to last, or "
                "training.live_teacher to true"
            )
    else:
        pairs = intermediate.layer_map(settings.layers, layers, len(blocks_of(teacher.model)))
    width = student.get_output_embeddings().weight.shape[1]
    with torch.random.fork_rng():  # the same in every process
        torch.manual_seed(settings.seed)
        projections = intermediate.Projections(len(pairs) if settings.hidden_weight else 0, width, teacher.width)
    return pairs, projections.to(next(student.parameters()).device)
