"""How long models take for an answer, side by side."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill.errors import InputError
from distill.loaded import Loaded, load
from distill.speed import WARM_UP, latencies

PROMPTS = ["The printer does not print", "log in", "x", "the invoice", "a laptop"]
LIMITS = {"max_prompt_tokens": 64, "max_new_tokens": 4}


def watched(loaded: Loaded, name: str, told: list[str]) -> Loaded:
    """Return a model that tells of each answer that it gives."""
    generate = loaded.model.generate

    def telling(*given: Any, **options: Any) -> Any:
        told.append(name)
        return generate(*given, **options)

    loaded.model.generate = telling
    return loaded


def test_models_answer_in_turns_and_none_is_always_the_second(tiny_checkpoint: Path) -> None:
    told: list[str] = []
    models = [watched(load(tiny_checkpoint, "cpu"), name, told) for name in "AB"]
    seconds = latencies(models, PROMPTS, **LIMITS)
    assert seconds.shape == (2, len(PROMPTS))
    assert (seconds > 0).all()
    assert "".join(told[: 2 * WARM_UP]) == "ABBAAB"
    assert "".join(told[2 * WARM_UP :]) == "ABBAABBAAB"


def test_a_model_that_takes_twice_as_long_is_seen_to(checkpoint_maker: Callable[..., Path], tmp_path: Path) -> None:
    loaded = load(checkpoint_maker(tmp_path / "model"), "cpu")
    slow = load(tmp_path / "model", "cpu")
    forward = slow.model.forward

    def twice(*given: Any, **options: Any) -> Any:
        forward(*given, **{**options, "past_key_values": None, "use_cache": False})
        forward(*given, **{**options, "past_key_values": None, "use_cache": False})
        return forward(*given, **options)

    slow.model.forward = twice
    first, second = np.median(latencies([loaded, slow], PROMPTS, **LIMITS), axis=1)
    assert second > 1.3 * first


def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused(
    checkpoint_maker: Callable[..., Path], tmp_path: Path
) -> None:
    short = load(checkpoint_maker(tmp_path / "short", context=16), "cpu")
    with pytest.raises(InputError, match="exceed the context"):
        latencies([short], ["a printer that does not print any more"], max_prompt_tokens=16, max_new_tokens=4)


def test_size_and_memory_are_those_of_files_and_of_each_weight_once(tiny_checkpoint: Path) -> None:
    loaded = load(tiny_checkpoint, "cpu")
    weights = sum(weight.numel() for weight in loaded.model.parameters())
    buffers = sum(buffer.numel() for buffer in loaded.model.buffers())
    assert weights * 4 <= loaded.memory_bytes <= (weights + buffers) * 4
    assert loaded.size_bytes > (tiny_checkpoint / "model.safetensors").stat().st_size > weights * 4
    loaded.model.set_output_embeddings(loaded.model.get_input_embeddings())
    tied = loaded.model.get_output_embeddings().weight.numel()
    assert loaded.memory_bytes == pytest.approx((weights - tied) * 4, rel=0.01)


def test_a_loaded_model_is_not_loaded_again(tiny_checkpoint: Path) -> None:
    loaded = load(tiny_checkpoint, "cpu")
    assert load(loaded) is loaded
