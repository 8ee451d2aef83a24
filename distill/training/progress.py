"""How far a training run has come: what its next step depends on besides weights and moments.

It is published with every training state as JSON, so that a resumed run judges its losses, and its validation, as the
uninterrupted one does. The order of rows and the random numbers are functions of (seed, step): the step is all of them.
"""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Progress:
    """Finished steps, the last losses and gradient norms, and the best evaluation so far."""

    step: int = 0
    losses: list[float] = field(default_factory=list)  # of the last steps, the newest last
    norms: list[float] = field(default_factory=list)
    best_step: int = 0  # 0: nothing was evaluated yet
    best_loss: float | None = None
    waited: int = 0  # evaluations since the best one

    def other_rows(self) -> None:
        """Forget the losses and norms of the rows before: those of other rows are not measured by them."""
        self.losses, self.norms = [], []

    def stepped(self, loss: float, norm: float, window: int) -> None:
        """Take a finished step; only the last `window` losses and norms are remembered."""
        self.step += 1
        self.losses = [*self.losses, loss][-window:]
        self.norms = [*self.norms, norm][-window:]

    def evaluated(self, loss: float) -> None:
        """Take the validation loss after the current step."""
        if self.best_loss is None or loss < self.best_loss:
            self.best_step, self.best_loss, self.waited = self.step, loss, 0
        else:
            self.waited += 1

    def stopped(self, patience: int) -> bool:
        """Return whether validation has not improved for `patience` evaluations; 0: never."""
        return patience > 0 and self.waited >= patience

    def as_json(self) -> dict[str, Any]:
        """Return the fields."""
        return asdict(self)
