"""A causal LM's pass over a batch: the states that its output layer is given, and what else is asked of its inside."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from distill.errors import InputError

_SOFT_CAPS = "final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap"  # as configurations name them
_ALIKE = {torch.float32: 1e-3, torch.float64: 1e-3}  # largest difference of logits, relative to the largest
_ROUNDED = 3e-2  # the same for bfloat16 and float16
_ALIKE_MAPS = 2e-2  # how far the sum of a map's row may be from 1


class Output(NamedTuple):
    """How a causal LM turns its last hidden states into logits: cap(head(scale * states))."""

    scale: float
    softcap: float | None


class Inside(NamedTuple):
    """What a pass shows. B bins of L tokens, D width, H heads."""

    final: Tensor  # (B, L, D) what the output layer's weight is multiplied with
    hidden: list[Tensor]  # (B, L, D) of each layer that was asked for
    attention: list[Tensor]  # (B, H, L, L) likewise


def run(
    model: Any, output: Output, inputs: dict[str, Tensor], layers: Sequence[int] = (), *, attention: bool = False
) -> Inside:
    """Run the model without its output layer. layers: counted from 1, the last one's states are after the final norm.

    Attention maps are made by the "eager" implementation alone.
    """
    seen = transformer_of(model)(
        **inputs, use_cache=False, output_hidden_states=bool(layers), output_attentions=bool(layers) and attention
    )
    final = seen.last_hidden_state if output.scale == 1 else seen.last_hidden_state * output.scale
    hidden = [seen.hidden_states[at] for at in layers]
    return Inside(final, hidden, [seen.attentions[at - 1] for at in layers] if attention else [])


def transformer_of(model: Any) -> Any:
    """Return a causal LM without its output layer; InputError where its class does not tell them apart."""
    if model.base_model is model:
        raise InputError(
            f"{type(model).__name__} does not say which part of it is under its output layer, and the loss is made "
            "from what that part gives: choose another model"
        )
    return model.base_model


def blocks_of(model: Any) -> nn.ModuleList:
    """Return the transformer's blocks, whatever the architecture calls them: its longest list of modules."""
    lists = [module for module in transformer_of(model).modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise InputError(f"{type(model).__name__} has no list of blocks, by which it could be sharded or looked into")
    return max(lists, key=len)


@torch.no_grad()
def require_whole_maps(model: Any) -> None:
    """Raise InputError where the attention maps of a model that learns lack what dropout took.

    Transformers gives them as they are after it: they are no distributions, and what was dropped would count as never
    looked at.
    """
    weight, training = model.get_output_embeddings().weight, model.training
    ids = (torch.arange(8, device=weight.device) * 7 % len(weight))[None]
    model.train()
    maps = run(model, Output(1.0, None), {"input_ids": ids}, range(1, len(blocks_of(model)) + 1), attention=True)
    model.train(training)
    if any(((layer.float().sum(-1) - 1).abs() > _ALIKE_MAPS).any() for layer in maps.attention):
        raise InputError(
            f"training.attention_weight: {type(model).__name__} drops part of its attention maps while it learns: set "
            "the attention dropout in its config.json to 0, or training.attention_weight to 0"
        )


@torch.no_grad()
def output_of(model: Any, what: str = "student") -> Output:
    """Return how this causal LM makes its logits, tried out on a few tokens.

    The loss uses the head's weight itself. Raises InputError where the logits are something else than a scaled and
    capped product with it.
    """
    layer = model.get_output_embeddings()
    config = model.config.get_text_config().to_dict()
    name = type(model).__name__
    if not isinstance(layer, nn.Linear):
        raise InputError(f"{what} {name}: its output layer is a {type(layer).__name__}, not a linear one")
    cap = next((float(config[key]) for key in _SOFT_CAPS if config.get(key)), None)
    ids = (torch.arange(8, device=layer.weight.device) * 7 % len(layer.weight))[None]
    training = model.training
    model.eval()
    hidden = transformer_of(model)(input_ids=ids, use_cache=False).last_hidden_state
    logits = model(input_ids=ids, use_cache=False).logits.double()
    model.train(training)
    if cap:
        logits = cap * torch.atanh(logits / cap)
    bias = 0.0 if layer.bias is None else layer.bias.double()
    plain, wanted = hidden.double() @ layer.weight.double().T, logits - bias
    scale = float((plain * wanted).sum() / (plain * plain).sum())
    difference = (wanted - scale * plain).abs().max()
    if not math.isfinite(scale) or difference > _ALIKE.get(layer.weight.dtype, _ROUNDED) * wanted.abs().max():
        raise InputError(
            f"{what} {name}: its logits are not its output layer's product with its last hidden states, "
            f"which is what the loss is made from: choose another {what}"
        )
    exact = _ALIKE.get(layer.weight.dtype, _ROUNDED) / 10
    return Output(1.0 if abs(scale - 1) < exact else scale, cap)
