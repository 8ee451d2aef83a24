"""A tiny student, its Bento, and that Bento served, each made once; and registries whose writes can be cut."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.bento.build import Bento, build
from deployments.bento.smoke import Server, serve
from deployments.errors import Failure
from deployments.registry import Registry, connect
from deployments.settings import PackagingSettings

PROMPTS = [
    "The printer on floor three is on fire.",
    "My invoice is wrong, please help.",
    "portal " * 40,  # longer than max_prompt_tokens
    "Grüße, я не могу войти ☂",
    "x",
]
LIMITS = {"max_prompt_tokens": 24, "max_new_tokens": 12}
TEMPLATE = "{% for m in messages %}<user>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"


@pytest.fixture(scope="session")
def prompts() -> list[str]:
    return list(PROMPTS)


@pytest.fixture(scope="session")
def limits() -> dict[str, int]:
    return dict(LIMITS)


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a byte-level BPE tokenizer, and files beside it that are none of a Bento's business."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("student") / "checkpoint"
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<pad>", "<eos>", "<user>", "<bot>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    bpe.train_from_iterator(["A printer is broken.", "Help with an invoice.", "The portal is closed."], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", eos_token="<eos>", chat_template=TEMPLATE
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 8,  # a padded output layer
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,  # far from ties
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for stray in ("train.jsonl", "trainer_state.json", "server.log", "notes.txt"):
        (folder / stray).write_text("\n".join(PROMPTS), "utf-8")
    return folder


@pytest.fixture(scope="session")
def build_bento(student: Path) -> Callable[..., Bento]:
    """Return a call that builds the student's Bento in a store, with any argument changed."""

    def built(home: Path, **changes: Any) -> Bento:
        arguments: dict[str, Any] = {
            "checkpoint": student,
            "student": "tiny",
            "model_version": "7",
            "retrain_id": "r0a1b2",
            "labels": {"window": "2016-01-01..2017-01-01"},
            # A loaded machine is slow, and a request that would wait longer than this is answered with 503.
            "settings": PackagingSettings(max_latency_ms=60_000),
            "log": print,
            **LIMITS,
        }
        return build(home=home, **arguments | changes)

    return built


@pytest.fixture(scope="session")
def bento(build_bento: Callable[..., Bento], tmp_path_factory: pytest.TempPathFactory) -> Bento:
    return build_bento(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def server(bento: Bento) -> Iterator[Server]:
    with serve(bento, timeout=600) as server:
        yield server


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=300) as client:
        yield client


@pytest.fixture(scope="session")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an empty MLflow database, to be copied: making one takes seconds."""
    path = tmp_path_factory.mktemp("schema") / "mlflow.db"
    connect(f"sqlite:///{path}", "", "other", 60)
    return path


@pytest.fixture
def uri(schema: Path, tmp_path: Path) -> str:
    """Return the address of a fresh database."""
    shutil.copy(schema, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def registry(uri: str) -> Registry:
    return connect(uri, "", "student", 10)


@pytest.fixture
def served() -> Callable[[Registry], tuple[str | None, ...]]:
    """Return a function: registry -> the versions of champion, previous and challenger."""

    def versions(registry: Registry) -> tuple[str | None, ...]:
        found = (registry.champion(), registry.previous(), registry.challenger())
        return tuple(version.version if version else None for version in found)

    return versions


class _Cut:
    """An MLflow client whose n-th write fails before it is made: a fault that cannot be caused from outside."""

    WRITES = ("create_", "set_", "delete_", "log_", "finalize_")

    def __init__(self, client: Any, fail_at: int) -> None:
        self._client, self._left = client, fail_at

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        if not name.startswith(self.WRITES):
            return found

        def write(*args: Any, **kwargs: Any) -> Any:
            from mlflow.exceptions import MlflowException

            self._left -= 1
            if self._left == 0:
                raise MlflowException(f"cut before {name}")
            return found(*args, **kwargs)

        return write


@pytest.fixture
def cut() -> Callable[[Registry, int], Registry]:
    """Return a function: (registry, n) -> the same registry, but its n-th write fails."""
    return lambda registry, fail_at: replace(registry, client=_Cut(registry.client, fail_at))


@pytest.fixture
def was_cut() -> Callable[..., bool]:
    """Return a function: call something, and say whether a write of it was cut."""

    def called(function: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
        try:
            function(*args, **kwargs)
        except Failure as error:
            if "cut before" not in str(error):
                raise
            return True
        return False

    return called
