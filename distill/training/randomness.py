"""Random numbers of a step (dropout) as a pure function of (seed, step, rank).

So a run that was killed draws what the uninterrupted one draws, whatever was drawn in between, and no generator's state
has to be kept.
"""

import random

import numpy as np
import torch


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed the generators of torch (CPU and CUDA), numpy and Python for one step of one process."""
    wide, narrow = np.random.SeedSequence((seed, step, rank)).generate_state(2, np.uint64)
    torch.manual_seed(int(wide))  # of every device
    np.random.seed(int(narrow) % 2**32)
    random.seed(int(narrow))
