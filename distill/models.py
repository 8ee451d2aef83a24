"""Checkpoint -> causal language model on a device, whole or not at all; and the finished student -> checkpoint."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from distill.checkpoint import resolve
from distill.errors import InputError
from distill.prompts import load_tokenizer


def resolve_device(device: str) -> torch.device:
    """Return the device that `auto`, `cpu`, `cuda` or `cuda:N` means; InputError when it is not there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device {device!r}: torch {torch.__version__} sees none; use 'auto' or 'cpu'")
    return torch.device(device)


def load_model(checkpoint: str | Path, device: str = "auto", what: str = "checkpoint") -> Any:
    """Return a causal LM for inference: in the checkpoint's own dtype on a GPU, in float32 on a CPU.

    `what` names the checkpoint in errors. Raises InputError when it is missing, unreadable, or lacks a weight
    (which transformers alone would fill with random numbers).
    """
    from transformers import AutoModelForCausalLM

    folder, target = resolve(checkpoint, what), resolve_device(device)
    dtype = torch.float32 if target.type == "cpu" else "auto"
    try:
        with _without_progress_bar():
            model, info = AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{what} {str(checkpoint)!r} cannot be loaded ({type(error).__name__}: {reason}): copy or export it again"
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise InputError(
            f"{what} {str(checkpoint)!r} lacks {len(missing)} weights of a {type(model).__name__} "
            f"({', '.join(missing[:3])}): copy or export it again"
        )
    return model.to(target).eval()


def output_layer(checkpoint: str | Path, what: str = "checkpoint") -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return weight (V, D) and bias (V,) or None of a causal LM's output layer; nothing else of it is read.

    Raises InputError as `load_model` does.
    """
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = resolve(checkpoint, what)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(str(folder)))
    model.tie_weights()
    layer, named = model.get_output_embeddings(), dict(model.named_parameters(remove_duplicate=False))
    found: dict[str, torch.Tensor] = {}
    for part in ("weight", "bias"):
        names = {name for name, weight in named.items() if weight is getattr(layer, part)}  # a tied one has several
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as tensors:
                if there := sorted(names & set(tensors.keys())):
                    found[part] = tensors.get_tensor(there[0])
        if names and part not in found:
            raise InputError(
                f"{what} {str(checkpoint)!r} lacks the output layer's {part} ({', '.join(sorted(names))}): copy or "
                "export it again"
            )
    return found["weight"], found.get("bias")


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    if not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def export(model: Any, weights: dict[str, Any], source: Path, folder: Path) -> None:
    """Write a Hugging Face directory: these full weights, with the tokenizer and chat template of `source`."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with _without_progress_bar():
        model.save_pretrained(partial, state_dict=weights)
    load_tokenizer(source).save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)  # of a training that was finished before
    os.replace(partial, folder)
