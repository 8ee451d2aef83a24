"""LoRA: only small matrices beside the student's linear layers learn, and are added into them in the end.

W + alpha / rank * B A, with A (rank, in) random and B (out, rank) zero at first (Hu et al. 2021), by peft.
"""

from typing import Any

import torch

from distill.errors import InputError
from distill.models import load_model
from distill.settings import TrainingSettings

_ALL = "all-linear"


def add(student: Any, settings: TrainingSettings) -> Any:
    """Add adapters to a causal LM in place, and let nothing else of it learn; returns what can merge them.

    The same in every process. Raises InputError for targets that are not there, or are embeddings or output layer:
    the loss takes the weights of the latter as they are.
    """
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    names = settings.lora_targets
    targets = _ALL if names == _ALL else [name.strip() for name in names.split(",") if name.strip()]
    outer = {student.get_input_embeddings(), student.get_output_embeddings()}
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        try:
            config = LoraConfig(r=settings.lora_rank, lora_alpha=settings.lora_alpha, target_modules=targets)
            lora = LoraModel(student, config, "default")
        except ValueError as error:
            raise InputError(
                f"training.lora_targets = {names!r}: {' '.join(str(error).split())[:300]}; give names of "
                f"{type(student).__name__}'s linear layers with commas between them, or {_ALL}"
            ) from error
    missing = [one for one in targets if not any(name.endswith(one) for name in lora.targeted_module_names)]
    if targets != _ALL and missing:
        raise InputError(
            f"training.lora_targets = {names!r}: {type(student).__name__} has no linear layer {missing[0]!r}; "
            f"correct it, or give {_ALL}"
        )
    if outer != {student.get_input_embeddings(), student.get_output_embeddings()}:
        raise InputError(
            f"training.lora_targets = {names!r} has the embeddings or the output layer of {type(student).__name__}: "
            f"name layers of its blocks, or {_ALL}"
        )
    return lora


def merged(weights: dict[str, Any], start: str, settings: TrainingSettings) -> Any:
    """Return the student of checkpoint `start` with the trained adapters, all of `weights`, added into its layers."""
    student = load_model(start, device="cpu").float()
    lora = add(student, settings)
    student.load_state_dict(weights)
    return lora.merge_and_unload()
