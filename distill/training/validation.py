"""Rows that are never learned from, only asked every so many steps whether the student still gets better."""

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from distill.batches import Batches
from distill.batching.order import even_cuts
from distill.errors import InputError
from distill.mixture import Mixture
from distill.settings import TrainingSettings
from distill.training.steplog import PARTS


def held_out(keys: NDArray[np.uint8], share: float, seed: int) -> NDArray[np.bool_]:
    """Return which rows are held out, (rows,): about `share` of them, at least one.

    A pure function of (key, seed): rows that ask the same (one key) are all held out or all learned from, and a row's
    fate does not depend on its neighbours, unless they are so few that none or all would be drawn: then one question
    is held out, or learned from. Raises InputError where there is one question only.
    """
    if not share:
        return np.zeros(len(keys), np.bool_)
    salt, odd = np.random.SeedSequence((seed, 0x5EED)).generate_state(2, np.uint64)
    mixed = (np.ascontiguousarray(keys).view("<u8")[:, 0] ^ salt) * (odd | np.uint64(1))  # keys are SHA-256 already
    mixed ^= mixed >> np.uint64(32)
    drawn = (mixed * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(11)
    held = drawn < share * 2**53
    if not held.any():
        held = drawn == drawn.min()
    if held.all():
        held = drawn != drawn.max()
    if not held.any():
        raise InputError(
            f"training.validation_share = {share:g} cannot be held out: all {len(keys)} rows of the mixture ask the "
            "same, so that none would be left to learn from; set it to 0, or learn from more rows"
        )
    return np.asarray(held, np.bool_)


def rows_of(mixture: Mixture, settings: TrainingSettings) -> NDArray[np.bool_]:
    """Return which rows are held out, (rows,): those that the mixture names, or else those that `held_out` draws."""
    if mixture.held is not None:
        return mixture.held
    return held_out(mixture.keys, settings.validation_share, settings.seed)


def loss(model: torch.nn.Module, batches: Batches, held: list[int]) -> float:
    """Return the loss over these rows as training counts it: a mean over all their tokens. Collective."""
    lengths = batches.lengths[held]
    sums: Any = torch.zeros(len(PARTS), dtype=torch.float64)
    model.eval()
    with torch.no_grad():
        for part in np.split(np.asarray(held), even_cuts(lengths, batches.order.tokens)):
            for batch in batches.part(-1, part.tolist(), held).passes:
                parts = model(batch)[1]
                sums = sums.to(parts.device) + parts
    model.train()
    dist.all_reduce(sums)
    return float(sums.sum())
