"""The states that a model's output layer makes its logits from, recorded while it generates."""

from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.errors import InputError


class FinalStates:
    """Keeps, while it is entered, what the output layer is given for the last token of each forward pass.

    Raises InputError in the first pass of a model whose logits are not its output layer's alone: from its states they
    could not be rebuilt.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._steps: list[Tensor] = []  # (B, D) each, on the model's device and in its dtype
        self._logits: Tensor | None = None

    def __enter__(self) -> "FinalStates":
        head = self.model.get_output_embeddings()
        self._hooks = [head.register_forward_hook(self._keep), self.model.register_forward_hook(self._compare)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def array(self) -> NDArray[np.float32]:
        """Return what was kept, (B, S, D)."""
        whole: NDArray[np.float32] = torch.stack(self._steps, 1).float().cpu().numpy()
        return whole

    def _keep(self, head: Any, given: tuple[Tensor, ...], logits: Tensor) -> None:
        self._steps.append(given[0][:, -1].clone())  # a view would keep the states of the whole prompt
        self._logits = logits if len(self._steps) == 1 else None

    def _compare(self, model: Any, given: Any, output: Any) -> None:
        if self._logits is not None and not torch.equal(self._logits[:, -1], output.logits[:, -1]):
            raise InputError(
                f"{model.config._name_or_path!r} scales or caps the logits of its output layer, so that they cannot be "
                "rebuilt from its states: set teacher.signals_format to topk:K"
            )
        self._logits = None
