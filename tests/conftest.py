"""What all tests share: a language model small enough to be made, the arXiv titles, a Prefect home of their own."""

import atexit
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

# Before Prefect is imported: runs of the tests go neither to the user's server nor into the user's database.
_HOME = tempfile.mkdtemp(prefix="redistill-tests-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
os.environ["PREFECT_HOME"] = _HOME
os.environ["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] = "600"  # no claim of ours: a busy machine is slow
os.environ.pop("PREFECT_API_URL", None)
logging.raiseExceptions = False  # Prefect's temporary server is stopped, and says so, when pytest's stderr is closed
import flows.environment  # noqa: E402, F401

_KEPT = "REDISTILL_ARXIV", "REDISTILL_REQUIRE_POSTGRES", "REDISTILL_SGLANG_PYTHON"
for _name in [name for name in os.environ if name.startswith("REDISTILL_") and name not in _KEPT]:
    del os.environ[_name]

SENTENCES = [
    "The printer on the second floor does not print any more",
    "I cannot log in to my account since the password was changed",
    "Please send me the invoice of last month once again",
    "The new laptop loses its wireless connection every few minutes",
    "How do I set up the mail program on my telephone?",
    "billing high", "technical low", "account medium",
]  # fmt: skip
CHAT_TEMPLATE = (
    "{% for message in messages %}<user>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<answer>{% endif %}"
)


def make_checkpoint(folder: Path, *, seed: int = 0, sentences: list[str] = SENTENCES, context: int = 256) -> Path:
    """Write a Llama of width 32 with 2 layers, vocabulary 320, as a Hugging Face directory."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "<eos>", "<user>", "<answer>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(sentences, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", chat_template=CHAT_TEMPLATE
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.3,  # wide: so the answers differ from prompt to prompt
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint to read; copy it before changing anything in it."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="session")
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with another tokenizer and other weights."""
    sentences = ["quantum lattices and graph neural networks", "fast approximate matrix sketching"]
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "other", seed=1, sentences=sentences)


@pytest.fixture(scope="session")
def checkpoint_maker() -> Callable[..., Path]:
    """Return make_checkpoint(folder, seed=0, sentences=SENTENCES, context=256) -> folder."""
    return make_checkpoint


@pytest.fixture(scope="session")
def free_port() -> Iterator[Callable[[], int]]:
    """Return a function: -> a loopback port on which nobody listens, and which nobody else is given meanwhile."""
    with ExitStack() as held:

        def port() -> int:
            holder = held.enter_context(socket.socket())
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that is told of it may take it
            holder.bind(("127.0.0.1", 0))
            return int(holder.getsockname()[1])

        yield port


Reply = Callable[[dict[str, Any]], tuple[int, dict[str, str], Any]]


@pytest.fixture
def endpoint() -> Iterator[Callable[..., str]]:
    """Return endpoint(reply, models=["big"], key="") -> the address of an HTTP server that speaks OpenAI's protocol.

    reply: what was posted, as JSON -> (status, headers, JSON, or bytes that are none). With `key` it answers nobody who
    does not show it.
    """
    import json
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    with ExitStack() as stack:

        def serve(reply: Reply, models: Sequence[str] = ("big",), key: str = "") -> str:
            class Handler(BaseHTTPRequestHandler):
                protocol_version = "HTTP/1.1"

                def do_GET(self) -> None:
                    known = self.path == "/v1/models" and models
                    self.say(200, {}, {"data": [{"id": name} for name in models]}) if known else self.say(404, {}, {})

                def do_POST(self) -> None:
                    posted = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                    self.say(*reply({**posted, "path": self.path}))

                def say(self, status: int, headers: dict[str, str], said: Any) -> None:
                    if key and self.headers["Authorization"] != f"Bearer {key}":
                        status, headers, said = 401, {}, {"error": {"message": "who are you"}}
                    content = said if isinstance(said, bytes) else json.dumps(said).encode()
                    self.send_response(status)
                    for name, value in {**headers, "Content-Length": str(len(content))}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(content)

                def log_message(self, *_: Any) -> None:
                    pass

            class Server(ThreadingHTTPServer):
                daemon_threads = True
                request_queue_size = 128  # of 5, the default, connections that come at once are reset

            server = Server(("127.0.0.1", 0), Handler)
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            return f"http://127.0.0.1:{server.server_address[1]}"

        yield serve


@pytest.fixture(scope="session")
def arxiv_titles() -> Path:
    """Return the file of real, dated titles, or skip."""
    root = Path(__file__).resolve().parents[1]
    path = Path(os.environ.get("REDISTILL_ARXIV", root.parent / "shared" / "data" / "arxiv_titles_2008_2016.csv.gz"))
    if not path.is_file():
        pytest.skip(f"the arXiv titles are not at {path}: set REDISTILL_ARXIV")
    return path


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which `python -m flows.retrain --json` was run once; its output lies in demo.txt."""
    folder = tmp_path_factory.mktemp("demo")
    with (folder / "demo.txt").open("w") as output:
        subprocess.run([sys.executable, "-m", "flows.retrain", "--json"], cwd=folder, stdout=output, check=True)
    return folder
