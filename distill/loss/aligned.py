"""One tile against a teacher with another tokenizer: shared tokens by name, the others by rank.

Where both say the same token its distribution is over the tokens that both have, and one outcome for the rest. Where
they do not, the student learns the answer's token, as of a teacher that knows no other. By rank are compared: of a
matched token what either lacks, of one that begins where a token of the teacher began everything.

    ULD = sum over ranks of |p_(i) - q_(i)| + |rest of p - rest of q|                      (Boizard et al. 2024)

Only the teacher's k likeliest are known: the tokens after them are one further outcome, which a matched token leaves
out (its rest is compared by name). Shapes: c tokens, V vocabulary of the student, k kept tokens.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from distill.loss.formulas import Formula

_LEAST = -87.0  # log-probability of what float32 cannot hold


class Aligned(NamedTuple):
    """What such a teacher said of N tokens (distill.alignment.translated)."""

    ids: Tensor  # (N, k) int64
    logprobs: Tensor  # (N, k)
    live: Tensor  # (N, k) bool
    tail: Tensor  # (N,)
    matched: Tensor  # (N,) bool
    answer: Tensor  # (N,) int64 the answer's tokens
    ranked: Tensor  # (N, k)
    ranks: Tensor  # (N,) int64
    rest: Tensor  # (N,)
    shared: Tensor  # (V,) bool, the student's tokens that the teacher has
    weights: Tensor  # (N,) of the comparison by rank

    def part(self, rows: slice | Tensor) -> "Aligned":
        """Return some of the tokens."""
        return self._replace(**{name: getattr(self, name)[rows] for name in self._fields if name != "shared"})


def by_name(teacher: Aligned, log_q: Tensor, q: Tensor, formula: Formula, beta: float) -> tuple[Tensor, Tensor]:
    """Return each token's divergence (c,), -log q of the answer's where none is matched, and the gradient (c, V)."""
    value = -log_q.gather(-1, teacher.answer[:, None])[:, 0]
    gradient = q.clone()
    gradient.scatter_add_(-1, teacher.answer[:, None], gradient.new_full((len(q), 1), -1.0))
    if len(at := teacher.matched.nonzero()[:, 0]):
        value[at], gradient[at] = _matched(teacher.part(at), log_q[at], q[at], formula, beta)
    return value, gradient


def by_rank(teacher: Aligned, q: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ULD of each token (c,) and its gradient in the logits (c, V)."""
    value, gradient = q.new_zeros(len(q)), torch.zeros_like(q)
    if len(at := (teacher.ranks > 0).nonzero()[:, 0]):
        value[at], gradient[at] = _ranked(teacher.part(at), q[at])
    return value, gradient


def _matched(teacher: Aligned, log_q: Tensor, q: Tensor, formula: Formula, beta: float) -> tuple[Tensor, Tensor]:
    """As distill.loss.tile does with a top-k, where not all k tokens are the student's.

    Those that are not have no probability on either side: they take no part in any formula.
    """
    ids, live = teacher.ids, teacher.live
    kept_q = torch.where(live, q.gather(-1, ids), 0)
    kept_log_q = torch.where(live, log_q.gather(-1, ids), _LEAST)
    rest = q.scatter(-1, ids, 0.0)  # added up themselves: 1 - sum(kept) would cancel to noise
    mass = rest.sum(-1, keepdim=True)
    alone = log_q.scatter(-1, ids, float("-inf"))
    log_mass = alone.logsumexp(-1, keepdim=True)
    log_mass = log_mass.masked_fill(log_mass.isneginf(), _LEAST)  # a student that has no other token
    share = (alone - log_mass).exp()  # of the rest, whatever little it is
    logprobs = teacher.logprobs.to(q.dtype).masked_fill(~live, float("-inf"))
    log_p = torch.cat([logprobs, teacher.tail[:, None].to(q.dtype).log()], -1).log_softmax(-1)
    p, log_p = log_p.exp(), log_p.clamp(min=_LEAST)
    value, pull = formula(torch.cat([kept_q, mass], -1), p, torch.cat([kept_log_q, log_mass], -1), log_p, beta)
    return value, share.mul_(pull[:, -1:]).scatter_add_(-1, ids, torch.where(live, pull[:, :-1], 0))


def _ranked(teacher: Aligned, q: Tensor) -> tuple[Tensor, Tensor]:
    counted = ~(teacher.matched[:, None] & teacher.shared)  # (c, V)
    among = q * counted
    count = min(teacher.ranked.shape[-1], q.shape[-1])
    top, at = among.topk(count, -1)
    within = torch.arange(teacher.ranked.shape[-1], device=q.device) < teacher.ranks[:, None]  # (c, k)
    p = teacher.ranked.to(q.dtype)
    # A student of fewer tokens has none of these ranks.
    beyond = (p * within)[:, count:].sum(-1)
    difference = (top - p[:, :count]) * within[:, :count]
    value = difference.abs().sum(-1) + beyond
    rest = among.sum(-1) - (top * within[:, :count]).sum(-1) - teacher.rest.to(q.dtype)
    compared = teacher.rest >= 0
    value += rest.abs() * compared
    slope = (rest.sign() * compared)[:, None] * counted  # dULD/dq
    inside = within[:, :count] & counted.gather(-1, at)
    slope.scatter_(-1, at, torch.where(inside, difference.sign(), slope.gather(-1, at)))
    return value, q * (slope - torch.linalg.vecdot(q, slope)[:, None])
